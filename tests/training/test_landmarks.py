"""A run whose student left a record of its words places the others by them, and resumes to the same."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from run_logs import losses

from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.distillation import landmarks as landmarks_of_regions
from advl_pipeline.errors import Interrupted
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.training.run import run_finetune


def test_known_words_are_landmarks_and_are_not_distilled(small_corpus: Any, known: Path, tmp_path: Path) -> None:
    counts = json.loads(known.read_text())
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    logs = {}
    for landmarks in ("known", "all"):
        run = tmp_path / landmarks
        run_finetune(
            small_corpus.config(
                run,
                known_words=known,
                landmarks=landmarks,
                selection="prior",
                selection_rho=1.0,
                cache=small_corpus.caches[:1],
            )
        )
        logs[landmarks] = losses(run)
        texts = json.loads((run / "readout.json").read_text())["after"]["minilm-l6"]["texts"]
        assert texts["num_asked"] > 10
        selected = json.loads((run / "selected_words.json").read_text())
        chosen = {
            candidate.text[start:end].lower()
            for index, name in enumerate(dataset.example_ids)
            if name in selected
            for candidate, spans in zip(dataset[index].candidates, selected[name], strict=True)
            for start, end in spans
        }
        assert chosen
        assert bool(chosen & set(counts)) == (landmarks == "all")
    assert logs["known"][0]["raw/text"] != logs["all"][0]["raw/text"]


@pytest.mark.parametrize(("layer", "has_landmarks"), [("unimodal", True), ("fused", False)])
def test_regions_that_the_student_names_are_landmarks_below_the_fusion(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, has_landmarks: bool
) -> None:
    # A student that was never pretrained gives nearly all regions one name.
    monkeypatch.setattr(landmarks_of_regions, "MIN_LANDMARKS", 1)
    logs = {}
    for landmarks in ("known", "all"):
        options = {"landmarks": landmarks, "distill_layer": layer, "pathway": "vision", "known_words": known}
        run_finetune(small_corpus.config(tmp_path / landmarks, **options))
        logs[landmarks] = losses(tmp_path / landmarks)
    assert (logs["known"][0]["raw/vision"] != logs["all"][0]["raw/vision"]) == has_landmarks
    assert logs["known"][-1]["raw/vision"] > 0


def test_a_stopped_run_finds_the_same_landmarks(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (
        small_corpus.config(tmp_path / name, known_words=known, checkpoint_every=1) for name in ("whole", "stopped")
    )
    run_finetune(whole)
    log, calls = RunFolder.log, []

    def stop(self: RunFolder, records: Any) -> None:
        calls.append(records)
        if len(calls) == 4:
            raise KeyboardInterrupt
        log(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", stop)
        with pytest.raises(Interrupted):
            run_finetune(stopped)
    run_finetune(stopped)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("landmarks", ["known", "all"])
def test_likenesses_are_compared_in_full_precision_where_the_student_computes_in_half(
    small_corpus: Any, known: Path, tmp_path: Path, landmarks: str
) -> None:
    options = {"known_words": known, "landmarks": landmarks, "num_steps": 1}
    run_finetune(small_corpus.config(tmp_path / "full", **options))
    # A process computes in one precision.
    half = multiprocessing.get_context("spawn").Process(
        target=run_finetune, args=(small_corpus.config(tmp_path / "half", mixed_precision="bf16", **options),)
    )
    half.start()
    half.join()
    assert half.exitcode == 0
    for name in ("raw/text", "raw/vision"):
        full, found = (losses(tmp_path / run)[0][name] for run in ("full", "half"))
        assert full > 0
        assert found == pytest.approx(full, rel=0.02)
