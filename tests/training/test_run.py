"""A run as a user gives it: killed, with live teachers, scored on the way, and what it leaves besides its student."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from altered_dataset import alter_examples
from commands import printed
from first_step import first_terms
from live_teacher import teachers_run
from own_rows import choice_row, write_json_lines
from run_logs import load_json, metrics, tensorboard_of
from small_corpus import SMALL_WORDS, train

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.runs import names
from advl_pipeline.runs.trackers import scalars
from advl_pipeline.training import loop
from advl_pipeline.training.batches import TrainingBatch
from advl_pipeline.training.config import config_of_run
from advl_pipeline.training.step import FinetuneModel


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """Live teachers, each opened once."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "advl"},
        {"adapt_objective": "contrastive", "selection": "prior", "distance": "cosine"},
        {"distance": "mse", "distill_layer": "fused"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_cached_and_live_teachers_give_the_same_loss(
    changes: dict[str, str], opened: dict[str, Any], small_corpus: Any, tmp_path: Path
) -> None:
    cached = first_terms(small_corpus.config(tmp_path / "cached", **changes))
    with teachers_run(small_corpus.dataset(), opened=opened):
        live = first_terms(small_corpus.config(tmp_path / "live", num_workers=1, **changes))
    names = {key.partition("/")[2] for key in cached}
    assert {f"{kind}/{name}" for kind in ("raw", "weighted") for name in ("vision", "text")} <= names
    # Features are stored in half precision.
    assert cached == pytest.approx(live, rel=5e-3)


def test_a_split_without_labels_is_refused_before_anything_is_written(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter_examples(monkeypatch, lambda example: replace(example, label=None, soft_label=()))
    for dataset in ("scenes-vcr", "scenes-vqa"):
        run = tmp_path / dataset
        with pytest.raises(DatasetError, match="nothing to learn"):
            small_corpus.run(run, dataset=dataset, task=(), method="plain", cache=())
        assert not run.exists()


@pytest.mark.slow
def test_what_is_logged_is_what_evaluate_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = ("train", "train", "val")
    write_json_lines(Path("mine.jsonl"), [choice_row(number, split=splits[number % 3]) for number in range(24)])
    words = ("finetune", "--data", "mine.jsonl", "--student", "scenes-small", "--method", "plain", "--batch-size", 2)
    words = (*words, "--student-option", *SMALL_WORDS)
    _, message = printed(capsys, *words, "--num-steps", 50, "--output", "run")
    first, last = (record for record in metrics(Path("run")) if "val/task" in record)
    assert (first["step"], last["step"]) == (24, 49)
    assert f"step 50: loss {last['val/task']:.3f}, {100 * last['val/correct']:.1f} % right of 8 examples" in message
    printed(capsys, "evaluate", "run", "--on", "val", "--probe", "none")
    scored = json.loads(Path("run/evaluation/val.json").read_text(encoding="utf-8"))
    assert last["val/correct"] == pytest.approx(scored["metrics"]["choice"] / 100)
    unseen = config_of_run(load_json(Path("run/config.json")), output=Path("unseen"))
    train(unseen, scores_val=False)
    losses, alone = ([record["raw/task"] for record in metrics(Path(run))] for run in ("run", "unseen"))
    assert losses == alone
    assert not any("val/task" in record for record in metrics(Path("unseen")))


def test_a_run_says_which_words_it_selects_and_trackers_get_what_the_json_lines_get(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, find = list[int](), FinetuneModel.distillation_terms

    def watched(model: FinetuneModel, batch: TrainingBatch, *others: Any, **named: Any) -> Any:
        sizes.append(len(batch.example_ids))
        return find(model, batch, *others, **named)

    monkeypatch.setattr(FinetuneModel, "distillation_terms", watched)
    run = tmp_path / "run"
    small_corpus.run(run, num_steps=2, steps="one", accumulate=2, log_with="tensorboard")
    assert max(sizes) == 2, "words are selected of no more examples than a micro-batch has"
    chosen = load_json(run / names.SELECTED_WORDS)
    assert set(chosen) == set(small_corpus.dataset().example_ids)
    for example in small_corpus.examples():
        for candidate, spans in zip(example.candidates, chosen[example.example_id], strict=True):
            words = [list(span) for span in word_spans(candidate.text)]
            assert [span for span in words if span in spans] == spans
            # A third of the words, rounded up; words that no token of the student stands for cannot be selected.
            assert len(spans) <= -(-3 * len(words) // 10)
            assert spans
    events, logged = tensorboard_of(run), metrics(run)
    tags = {"raw/text", "raw/task", "learning_rate", "lambda", "weights/text/mean", "weights/text/max"}
    assert tags <= set(events.Tags()["scalars"])
    for name in events.Tags()["scalars"]:
        expected = [(record["step"], scalars(record)[name]) for record in logged if name in scalars(record)]
        tracked = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in tracked] == [step for step, _ in expected]
        assert [value for _, value in tracked] == pytest.approx([value for _, value in expected], rel=1e-5)
    for name, changes in (("all", {"selection": "all"}), ("plain", {"method": "plain", "cache": ()})):
        small_corpus.run(tmp_path / name, num_steps=1, steps="one", **changes)
        assert not (tmp_path / name / names.SELECTED_WORDS).exists()


def test_steps_keep_to_one_order_where_asked(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    take, flags = loop.OptimiserSteps.take, list[tuple[bool, bool]]()

    def watched(*arguments: Any, **options: Any) -> Any:
        flags.append((torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ))
        return take(*arguments, **options)

    monkeypatch.setattr(loop.OptimiserSteps, "take", watched)
    small_corpus.run(tmp_path / "run", method="plain", cache=(), num_steps=2, deterministic=True)
    assert flags == [(True, True)] * 2
    assert not torch.are_deterministic_algorithms_enabled()
