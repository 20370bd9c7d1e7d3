"""A split seen otherwise: a part of it by its examples, or several splits as one.

A part is the low-shot subsets of some seeds, or the ids of a file. Everything else is as in the whole split, its
content digest too: a cache of the part says that it is one.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import read_id_list
from advl_pipeline.datasets.problems import Problem
from advl_pipeline.datasets.records import (
    Candidate,
    Dataset,
    Example,
    ImageUnit,
    QuestionTable,
    StratifiedDataset,
    Task,
    TextUnit,
)
from advl_pipeline.errors import ConfigError, DatasetError, leave_out


class _View:
    """What a view has of its first split; implements a part of `records.Dataset`."""

    def __init__(self, first: Dataset) -> None:
        self.name, self.split, self.text_style = first.name, first.split, first.text_style
        self.tasks: tuple[Task, ...] = first.tasks
        self._first = first

    @property
    def identity_name(self) -> str:
        """Return the split's."""
        return self._first.identity_name

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Return the split's class names."""
        return self._first.label_names(task)

    def content_digest(self) -> str:
        """Return the digest of the whole split."""
        return self._first.content_digest()


class SelectedExamples(_View):
    """Some examples of a split, in its order; implements `records.Dataset`."""

    def __init__(self, whole: StratifiedDataset, ids: Collection[str], *, skipped: Sequence[Any] = ()) -> None:
        super().__init__(whole)
        self.skipped = tuple(skipped)
        self.whole = whole
        wanted = set(ids)
        self._positions = [position for position, name in enumerate(whole.example_ids) if name in wanted]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        return self.whole[self._positions[index]]

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example; its picture is not opened."""
        return self.whole.candidates_of(self._positions[index])

    @property
    def example_ids(self) -> Sequence[str]:
        ids = self.whole.example_ids
        return [ids[position] for position in self._positions]

    @property
    def selection(self) -> dict[str, Any]:
        """What tells this part from others, for the identity of a cache: how many examples, and which."""
        digest = hashlib.sha256("\n".join(sorted(self.example_ids)).encode()).hexdigest()
        return {"num_examples": len(self), "examples": digest}

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the pictures of the part, each once."""
        return list({image.unit_id: image for image in (self[place].image for place in range(len(self)))}.values())

    def text_units(self) -> Sequence[TextUnit]:
        """Return the texts of the part, each once."""
        units = (one.text_unit for place in range(len(self)) for one in self.candidates_of(place)[1])
        return list({unit.unit_id: unit for unit in units}.values())


class _Parts(_View):
    """Splits one after another; ids get a prefix each, "" for none."""

    def __init__(self, parts: Sequence[Dataset], prefixes: Sequence[str]) -> None:
        super().__init__(parts[0])
        self.parts = tuple(parts)
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
        place = self._part_of(index)
        example = self.parts[place][index - self._starts[place]]
        prefix = self._prefixes[place]
        return replace(example, example_id=prefix + example.example_id) if prefix else example

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example; its picture is not opened."""
        place = self._part_of(index)
        return self.parts[place].candidates_of(index - self._starts[place])

    def _part_of(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def content_digest(self) -> str:
        """Return the SHA-256 of the parts' digests, in order."""
        return hashlib.sha256("".join(part.content_digest() for part in self.parts).encode()).hexdigest()

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the pictures of all parts, each once."""
        return list({unit.unit_id: unit for part in self.parts for unit in part.image_units()}.values())

    def text_units(self) -> Sequence[TextUnit]:
        """Return the texts of all parts, each once."""
        return list({unit.unit_id: unit for part in self.parts for unit in part.text_units()}.values())


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


def refuse_two_subsets(shots: int | None, ids: object) -> None:
    """Refuse a subset that is both drawn and listed.

    Raises:
        ConfigError: as said.
    """
    if shots is not None and ids:
        raise ConfigError(
            "A subset is drawn or listed, not both.", where="--shots and --ids", next_command=leave_out("--ids")
        )


def listed_ids(file: Path, dataset: Dataset) -> tuple[str, ...]:
    """Read a list that `advl datasets subset` wrote, as ids of an opened split.

    An id without a task stands for the question's examples of all tasks; those of tasks that the split is not opened
    for are left out.

    Raises:
        DatasetError: the list is missing, malformed, of another split, or names what the split does not hold.
    """
    listed = read_id_list(file)
    if (listed.dataset, listed.split) != (dataset.identity_name, dataset.split):
        raise DatasetError(
            "The list of ids is of another split.",
            where=str(file),
            why=f"it is of {listed.dataset} {listed.split}, asked for is {dataset.identity_name} {dataset.split}",
        )
    known = set(dataset.example_ids)
    found: list[str] = []
    for listed_id in listed.example_ids:
        _, colon, task = listed_id.rpartition(":")
        here = [name for name in (listed_id, *(f"{listed_id}:{each}" for each in dataset.tasks)) if name in known]
        if not here and not (colon and task not in dataset.tasks):
            raise DatasetError(
                "The list of ids names an example that the split does not hold.", where=str(file), why=repr(listed_id)
            )
        found += here
    if not found:
        why = ", ".join(dataset.tasks)
        raise DatasetError("The list of ids names no example of the tasks asked for.", where=str(file), why=why)
    return tuple(dict.fromkeys(found))
