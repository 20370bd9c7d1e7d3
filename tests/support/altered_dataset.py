"""A dataset that differs from another one only in its examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.training import inputs


class AlteredDataset:
    """A wrapper that changes every example when it is read; everything else comes from the dataset."""

    def __init__(self, dataset: Any, change: Callable[[Any], Any]) -> None:
        self._dataset, self._change = dataset, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._change(self._dataset[index])


def with_wrong_label(example: Example) -> Example:
    """Return an example with another choice as its label."""
    assert example.label is not None
    return replace(example, label=(example.label + 1) % len(example.candidates))


def alter_examples(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], *, opened_by: str = "open_splits"
) -> list[str]:
    """Make runs read changed examples; returns a list to which opened splits are appended.

    Args:
        monkeypatch: of the test.
        change: maps an example to the changed one.
        opened_by: `open_splits` for the training data, `open_split` for other inputs of the adapt stage.
    """
    open_as_it_is, opened = getattr(inputs, opened_by), list[str]()

    def open_altered(dataset: DatasetSpec, split: str, **options: Any) -> Any:
        opened.append(split)
        return AlteredDataset(open_as_it_is(dataset, split, **options), change)

    monkeypatch.setattr(inputs, opened_by, open_altered)
    return opened
