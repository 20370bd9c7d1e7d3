"""Weights by labels: a control of studies, refused elsewhere, and 1 where the bridge is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from altered_dataset import AlteredDataset
from run_logs import losses

from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.studies.config import load_study
from advl_pipeline.studies.plan import build_plan
from advl_pipeline.training import confidences
from advl_pipeline.training.bridge import bridge_answers
from advl_pipeline.training.run import run_finetune


def test_a_run_outside_of_a_study_is_refused(small_corpus: Any, known: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="control of studies") as refused:
        run_finetune(small_corpus.config(tmp_path / "run", weighting="oracle", known_words=known))
    assert refused.value.where == "--weighting oracle"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("role", ["control", "method"])
def test_a_study_marks_it_as_a_control(role: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        f"""name = "s"
dataset = "scenes-vcr"
tasks = ["vcr-q2a"]
student = "scenes-small"
teachers = ["minilm-l6"]
test_sets = ["val"]
methods = ["plain", "by-labels"]
shots = [8]
seeds = [0]

[variants.by-labels]
method = "advl"
role = "{role}"
weighting = "oracle"
"""
    )
    study = load_study(str(path))
    if role == "control":
        build_plan(study, cells=tmp_path)
        return
    with pytest.raises(ConfigError, match="by-labels weighs by labels") as refused:
        build_plan(study, cells=tmp_path)
    assert "control" in refused.value.next_command


def test_weights_are_one_where_the_bridge_is_right_by_the_label(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, float] = {}
    right: dict[str, bool] = {}
    measure = confidences.oracle

    def keep(start: Any, landmarks: Any, dataset: Any, positions: Any, source: Any) -> Any:
        weights = measure(start, landmarks, dataset, positions, source)
        shares = bridge_answers(start, landmarks, dataset, positions, source)
        for position in positions:
            example = dataset[position]
            share_C = shares[example.example_id]
            right[example.example_id] = torch.nonzero(share_C == share_C.max())[:, 0].tolist() == [example.label]
        found.update(weights)
        return weights

    monkeypatch.setattr(confidences, "oracle", keep)
    options = {"known_words": known, "answer_weight": 1.0, "adapt_steps": 3}
    run_finetune(small_corpus.config(tmp_path / "run", weighting="oracle", **options), is_control=True)
    assert {name: weight == 1.0 for name, weight in found.items()} == right
    assert 0 < sum(found.values()) < len(found)
    logged = losses(tmp_path / "run")
    assert {one["phase"] for one in logged if "weights/text" in one} == {"adapt", "finetune"}
    # Of twenty bins the first and the last alone hold anything.
    assert all(sum(one["weights/text"]["counts"][1:-1]) == 0 for one in logged)
    assert all(one["weights/vision"]["mean"] == 1.0 for one in logged)
    plain = tmp_path / "uniform"
    run_finetune(small_corpus.config(plain, weighting="uniform", **options))
    assert [one["weighted/answers"] for one in losses(plain)[:3]] != [one["weighted/answers"] for one in logged[:3]]


def test_inputs_without_labels_are_refused(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlabelled(name: str, **given: Any) -> AlteredDataset:
        dataset = open_dataset(name, **given)
        first = dataset.example_ids[0]
        return AlteredDataset(dataset, lambda one: replace(one, label=None) if one.example_id == first else one)

    monkeypatch.setattr("advl_pipeline.training.inputs.open_splits", unlabelled)
    options = {"known_words": known, "weighting": "oracle", "adapt_steps": 8, "shots": 8}
    with pytest.raises(ConfigError, match="need the label of every input") as refused:
        run_finetune(small_corpus.config(tmp_path / "run", **options), is_control=True)
    assert "1 have none" in str(refused.value.why)


def test_without_a_bridge_it_is_refused(small_corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bridge") as refused:
        run_finetune(small_corpus.config(tmp_path / "run", weighting="oracle"), is_control=True)
    assert refused.value.where == "--weighting oracle"
