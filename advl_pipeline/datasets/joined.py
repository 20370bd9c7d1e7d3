"""Several splits read as one."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.interface import Dataset, QuestionTable
from advl_pipeline.datasets.problems import Problem
from advl_pipeline.datasets.records import Example, ImageUnit, Task, TextUnit
from advl_pipeline.errors import DatasetError


class _Parts:
    """Splits one after another, of the tasks and label names of the first; ids get a prefix each, "" for none."""

    def __init__(self, parts: Sequence[Dataset], prefixes: Sequence[str]) -> None:
        self.parts = tuple(parts)
        first = parts[0]
        self.name, self.split, self.text_style = first.name, first.split, first.text_style
        self.tasks: tuple[Task, ...] = first.tasks
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._prefixes = prefixes
        self.example_ids: Sequence[str] = [
            prefix + example_id
            for prefix, part in zip(prefixes, parts, strict=True)
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


class JoinedDataset(_Parts):
    """A split to train on, and others whose inputs are seen as well: ids of the others begin with "DATASET/SPLIT:".

    Labels of the others are not to be used.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        super().__init__(parts, ["", *(f"{part.name}/{part.split}:" for part in parts[1:])])

    @property
    def other_ids(self) -> frozenset[str]:
        """Ids of the examples that are not of the first part."""
        return frozenset(self.example_ids[self._starts[1] :])


class UnionOfSplits(_Parts):
    """Splits of one dataset to train on together, such as train+val before a test whose truth is not public.

    Raises:
        DatasetError: two parts hold an item of the same id.
    """

    parts: tuple[IndexedDataset, ...]

    def __init__(self, parts: Sequence[IndexedDataset]) -> None:
        super().__init__(parts, [""] * len(parts))
        self.split = "+".join(part.split for part in parts)
        self.skipped: tuple[Problem, ...] = tuple(chain.from_iterable(part.skipped for part in parts))
        if len(set(self.example_ids)) < len(self.example_ids):
            raise DatasetError(
                "Splits that hold the same items cannot be joined.",
                where=f"{self.name}, split {self.split}",
                next_command="name splits that have no item in common",
            )

    def question_table(self) -> QuestionTable:
        """Return the questions of all parts."""
        tables = [part.question_table() for part in self.parts]
        return QuestionTable(
            question_ids=list(chain.from_iterable(table.question_ids for table in tables)),
            example_ids=list(chain.from_iterable(table.example_ids for table in tables)),
            cells=np.concatenate([table.cells for table in tables]),
            strata=list(chain.from_iterable(table.strata for table in tables)),
            by_class=tables[0].by_class,
        )
