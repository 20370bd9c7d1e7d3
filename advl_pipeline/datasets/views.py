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

from advl_pipeline.base.errors import ConfigError, DatasetError, leave_out
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


class _View:
    """Examples of one or several splits, one after another; implements `records.Dataset`.

    Args:
        parts: the splits; what is not of examples is as in the first.
        prefixes: what the ids of each part begin with in addition.
        ids: of the examples that are seen; None for all.
    """

    def __init__(
        self, parts: Sequence[Dataset], prefixes: Sequence[str] = (), ids: Collection[str] | None = None
    ) -> None:
        first = parts[0]
        self.name, self.split, self.text_style = first.name, first.split, first.text_style
        self.tasks: tuple[Task, ...] = first.tasks
        self.parts = tuple(parts)
        self._prefixes = prefixes or [""] * len(parts)
        self._starts = [0, *accumulate(map(len, parts))]
        names = [
            prefix + name for prefix, part in zip(self._prefixes, parts, strict=True) for name in part.example_ids
        ]
        wanted = None if ids is None else {*ids}
        self._positions = [place for place, name in enumerate(names) if wanted is None or name in wanted]
        self.example_ids: Sequence[str] = [names[position] for position in self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the part of an example, and its position there."""
        position = self._positions[index]
        place = bisect.bisect_right(self._starts, position) - 1
        return place, position - self._starts[place]

    def __getitem__(self, index: int) -> Example:
        place, position = self._place(index)
        example, prefix = self.parts[place][position], self._prefixes[place]
        return replace(example, example_id=prefix + example.example_id) if prefix else example

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example; its picture is not opened."""
        place, position = self._place(index)
        return self.parts[place].candidates_of(position)

    @property
    def identity_name(self) -> str:
        """Return that of the first split."""
        return self.parts[0].identity_name

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Return the class names of the first split."""
        return self.parts[0].label_names(task)

    def content_digest(self) -> str:
        """Return the digest of the whole split, or the SHA-256 of the digests of several, in order."""
        digests = [part.content_digest() for part in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the pictures, each once."""
        return list({unit.unit_id: unit for part in self.parts for unit in part.image_units()}.values())

    def text_units(self) -> Sequence[TextUnit]:
        """Return the texts, each once."""
        return list({unit.unit_id: unit for part in self.parts for unit in part.text_units()}.values())


class SelectedExamples(_View):
    """Some examples of a split, in its order."""

    def __init__(self, whole: StratifiedDataset, ids: Collection[str], *, skipped: Sequence[Any] = ()) -> None:
        super().__init__([whole], ids=ids)
        self.whole = whole
        self.skipped = tuple(skipped)

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
        units = (candidate.text_unit for place in range(len(self)) for candidate in self.candidates_of(place)[1])
        return list({unit.unit_id: unit for unit in units}.values())


class JoinedDataset(_View):
    """A split to train on, and others whose inputs are seen as well: ids of the others begin with "DATASET/SPLIT:".

    Labels of the others are not to be used.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        super().__init__(parts, ["", *(f"{part.name}/{part.split}:" for part in parts[1:])])

    @property
    def other_ids(self) -> frozenset[str]:
        """Ids of the examples that are not of the first part."""
        return frozenset(self.example_ids[self._starts[1] :])


class UnionOfSplits(_View):
    """Splits of one dataset to train on together, such as train+val before a test whose truth is not public.

    Raises:
        DatasetError: two parts hold an item of the same id.
    """

    parts: tuple[IndexedDataset, ...]

    def __init__(self, parts: Sequence[IndexedDataset]) -> None:
        super().__init__(parts)
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
        ConfigError: both are asked for.
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
    example_ids: list[str] = []
    for listed_id in listed.example_ids:
        _, colon, task = listed_id.rpartition(":")
        here = [name for name in (listed_id, *(f"{listed_id}:{each}" for each in dataset.tasks)) if name in known]
        if not here and not (colon and task not in dataset.tasks):
            raise DatasetError(
                "The list of ids names an example that the split does not hold.", where=str(file), why=repr(listed_id)
            )
        example_ids += here
    if not example_ids:
        why = ", ".join(dataset.tasks)
        raise DatasetError("The list of ids names no example of the tasks asked for.", where=str(file), why=why)
    return tuple(dict.fromkeys(example_ids))
