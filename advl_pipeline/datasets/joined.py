"""Several splits read as one: the split that is trained on first, then others whose inputs are seen as well."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import Example, ImageUnit, Task, TextUnit


class JoinedDataset:
    """Splits one after another. Ids of the first stay as they are; the others' begin with "DATASET/SPLIT:".

    All parts have the tasks of the first, and its label names; labels of the others are not to be used.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)
        first = parts[0]
        self.name, self.split, self.text_style = first.name, first.split, first.text_style
        self.tasks: tuple[Task, ...] = first.tasks
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._prefixes = ["", *(f"{part.name}/{part.split}:" for part in parts[1:])]
        self.example_ids: Sequence[str] = [
            prefix + example_id
            for prefix, part in zip(self._prefixes, parts, strict=True)
            for example_id in part.example_ids
        ]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        place = bisect.bisect_right(self._starts, index) - 1
        example = self.parts[place][index - self._starts[place]]
        prefix = self._prefixes[place]
        return replace(example, example_id=prefix + example.example_id) if prefix else example

    @property
    def identity_name(self) -> str:
        """Return the first part's."""
        return self.parts[0].identity_name

    @property
    def other_ids(self) -> frozenset[str]:
        """Ids of the examples that are not of the first part."""
        return frozenset(self.example_ids[self._starts[1] :])

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Return the first part's class names."""
        return self.parts[0].label_names(task)

    def content_digest(self) -> str:
        """Return the SHA-256 of the parts' digests, in order."""
        return hashlib.sha256("".join(part.content_digest() for part in self.parts).encode()).hexdigest()

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the pictures of all parts, each once."""
        found = {unit.unit_id: unit for unit in chain.from_iterable(part.image_units() for part in self.parts)}
        return list(found.values())

    def text_units(self) -> Sequence[TextUnit]:
        """Return the texts of all parts, each once."""
        found = {unit.unit_id: unit for unit in chain.from_iterable(part.text_units() for part in self.parts)}
        return list(found.values())
