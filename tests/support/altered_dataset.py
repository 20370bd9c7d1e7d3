"""A dataset that differs from another one in its examples alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class AlteredDataset:
    """Every example is changed as it is read; everything else is the dataset's own."""

    def __init__(self, dataset: Any, change: Callable[[Any], Any]) -> None:
        self._dataset, self._change = dataset, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._change(self._dataset[index])
