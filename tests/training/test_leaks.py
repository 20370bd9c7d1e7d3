"""What a run may know: the labelled subset and inputs without labels, nothing of other splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_logs import losses

from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.distillation.word_prior import fit_word_prior
from advl_pipeline.extraction.confidence import load_or_estimate_confidence
from advl_pipeline.training.run import run_finetune


def test_low_shot_runs_use_the_same_nested_questions_for_every_method(small_corpus: Any, tmp_path: Path) -> None:
    summary = run_finetune(small_corpus.config(tmp_path / "run", shots=4, num_steps=2)).summary
    assert (summary["num_labelled"], summary["num_adapt_inputs"]) == (4, 4)
    wide = run_finetune(small_corpus.config(tmp_path / "wide", shots=4, num_steps=2, adapt_on="inputs")).summary
    assert (wide["num_labelled"], wide["num_adapt_inputs"]) == (4, 16)


class Relabelled:
    """A dataset whose examples outside a set of ids carry wrong labels; everything else is the dataset's own."""

    def __init__(self, dataset: Any, kept: set[str]) -> None:
        self._dataset, self._kept = dataset, kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        example = self._dataset[index]
        if example.example_id in self._kept:
            return example
        return replace(example, label=(example.label + 1) % len(example.candidates))


@pytest.mark.parametrize("adapt_on", ["subset", "inputs"])
def test_labels_outside_the_subset_and_other_splits_influence_nothing(
    adapt_on: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"shots": 4, "adapt_on": adapt_on}
    run_finetune(small_corpus.config(tmp_path / "true", **changes))
    opened: list[str] = []

    def open_relabelled(name: str, **options: Any) -> Any:
        opened.append(options["split"])
        dataset: Any = open_dataset(name, **options)
        return Relabelled(dataset, set(nested_subset(dataset, 4, 0)))

    monkeypatch.setattr("advl_pipeline.training.run.open_dataset", open_relabelled)
    run_finetune(small_corpus.config(tmp_path / "wrong", **changes))
    assert losses(tmp_path / "wrong") == losses(tmp_path / "true")
    assert opened == ["train"]


@pytest.mark.parametrize("adapt_on", ["subset", "inputs"])
def test_low_shot_statistics_come_from_where_the_readme_says(
    adapt_on: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    probed: list[str] = []

    def fit(texts: Any) -> Any:
        counted.extend(texts)
        return fit_word_prior(counted)

    def estimate(**options: Any) -> Any:
        probed.extend(options["example_ids"])
        return load_or_estimate_confidence(**options)

    monkeypatch.setattr("advl_pipeline.training.run.fit_word_prior", fit)
    monkeypatch.setattr("advl_pipeline.training.run.load_or_estimate_confidence", estimate)
    run_finetune(small_corpus.config(tmp_path / "run", shots=4, adapt_on=adapt_on, num_steps=2))
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    subset = set(nested_subset(dataset, 4, 0))
    examples = [dataset[index] for index in range(len(dataset))]
    inputs = [example for example in examples if adapt_on == "inputs" or example.example_id in subset]
    assert sorted(counted) == sorted(choice.text for example in inputs for choice in example.candidates)
    assert set(probed) == subset
    assert len(inputs) == (4 if adapt_on == "subset" else 16)


def test_inputs_without_labels_change_the_adapt_step(small_corpus: Any, tmp_path: Path) -> None:
    for adapt_on in ("subset", "inputs"):
        run_finetune(small_corpus.config(tmp_path / adapt_on, shots=4, adapt_on=adapt_on))
    assert losses(tmp_path / "subset") != losses(tmp_path / "inputs")
