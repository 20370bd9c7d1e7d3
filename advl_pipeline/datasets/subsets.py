"""Subsets and unions of splits: some examples of a split, or several splits as one.

A selection is the union of the low-shot subsets of some seeds, or the ids of a file. Everything else, including the
content digest, is that of the complete split; a cache of a selection records that it is one.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from advl_pipeline.base.errors import ConfigError, DatasetError, leave_out
from advl_pipeline.datasets.cards import JOIN
from advl_pipeline.datasets.lowshot import read_id_list
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

Unit = TypeVar("Unit", ImageUnit, TextUnit)


class _OfSplits:
    """Attributes that a subset or a union takes from its first split."""

    def __init__(self, *parts: Dataset) -> None:
        self._first = parts[0]
        self.name, self.split, self.text_style = self._first.name, self._first.split, self._first.text_style
        self.tasks: tuple[Task, ...] = self._first.tasks
        self.skipped = tuple(chain.from_iterable(part.skipped for part in parts))

    @property
    def identity_name(self) -> str:
        return self._first.identity_name

    def label_names(self, task: Task) -> tuple[str, ...]:
        """Return the class names of the first split."""
        return self._first.label_names(task)


class Selected(_OfSplits):
    """Some examples of a split, by id, in the split's order; implements `records.Dataset`."""

    def __init__(self, whole: StratifiedDataset, ids: Collection[str]) -> None:
        super().__init__(whole)
        self.whole, wanted = whole, {*ids}
        self._positions = [place for place, name in enumerate(whole.example_ids) if name in wanted]
        self.example_ids: Sequence[str] = [whole.example_ids[place] for place in self._positions]

    @property
    def selection(self) -> dict[str, Any]:
        """Return the number and the ids' digest of the examples, for the identity of a cache."""
        digest = hashlib.sha256("\n".join(sorted(self.example_ids)).encode()).hexdigest()
        return {"num_examples": len(self), "examples": digest}

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        return self.whole[self._positions[index]]

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example; its picture is not opened."""
        return self.whole.candidates_of(self._positions[index])

    def content_digest(self) -> str:
        """Return the digest of the complete split."""
        return self.whole.content_digest()

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the pictures of the selection, each once."""
        return _each_once(self[place].image for place in range(len(self)))

    def text_units(self) -> Sequence[TextUnit]:
        """Return the texts of the selection, each once."""
        candidates = chain.from_iterable(self.candidates_of(place)[1] for place in range(len(self)))
        return _each_once(candidate.text_unit for candidate in candidates)


class Concatenated(_OfSplits):
    """The examples of several splits, one split after another; implements `records.Dataset`.

    Args:
        parts: splits such as train and val, to train on together.
        prefixes: additional prefix of the ids of each part, if the parts are from several datasets; the result is
            then named after the first one.

    Raises:
        DatasetError: two parts contain an item with the same id.
    """

    def __init__(self, parts: Sequence[StratifiedDataset], *, prefixes: Sequence[str] = ()) -> None:
        super().__init__(*parts)
        self.parts = tuple(parts)
        if not prefixes:
            self.split = JOIN.join(part.split for part in parts)
        self._prefixes = prefixes or [""] * len(parts)
        self._starts = [0, *accumulate(map(len, parts))]
        named = zip(self._prefixes, parts, strict=True)
        self.example_ids: Sequence[str] = [prefix + name for prefix, part in named for name in part.example_ids]
        if len(set(self.example_ids)) < len(self.example_ids):
            raise DatasetError(
                "Splits that hold the same items cannot be joined.",
                where=f"{self.name}, split {self.split}",
                next_command="name splits without a common item",
            )

    def __len__(self) -> int:
        return len(self.example_ids)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the part of an example, and its position in it."""
        place = bisect.bisect_right(self._starts, index) - 1
        return place, index - self._starts[place]

    def __getitem__(self, index: int) -> Example:
        place, position = self._place(range(len(self))[index])
        example, prefix = self.parts[place][position], self._prefixes[place]
        return replace(example, example_id=prefix + example.example_id) if prefix else example

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        """Return the task and the candidates of an example; its picture is not opened."""
        place, position = self._place(index)
        return self.parts[place].candidates_of(position)

    def content_digest(self) -> str:
        """Return the SHA-256 of the digests of the parts, in order."""
        return hashlib.sha256("".join(part.content_digest() for part in self.parts).encode()).hexdigest()

    def image_units(self) -> Sequence[ImageUnit]:
        """Return the pictures, each once."""
        return _each_once(chain.from_iterable(part.image_units() for part in self.parts))

    def text_units(self) -> Sequence[TextUnit]:
        """Return the texts, each once."""
        return _each_once(chain.from_iterable(part.text_units() for part in self.parts))

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


def _each_once(units: Iterable[Unit]) -> Sequence[Unit]:
    return list({unit.unit_id: unit for unit in units}.values())


def refuse_two_subsets(shots: int | None, ids: object) -> None:
    """Refuse a request for both a drawn and a listed subset.

    Raises:
        ConfigError: both are requested.
    """
    if shots is not None and ids:
        raise ConfigError(
            "Give --shots or --ids, not both.", where="--shots and --ids", next_command=leave_out("--ids")
        )


def listed_ids(file: Path, dataset: Dataset) -> tuple[str, ...]:
    """Read a list from `advl datasets subset` as ids of an opened split.

    An id without a task selects the question's examples of all tasks; tasks that the split is not opened for are
    left out.

    Raises:
        DatasetError: the list is missing, malformed, for another split, or contains an unknown id.
    """
    listed = read_id_list(file)
    if (listed.dataset, listed.split) != (dataset.identity_name, dataset.split):
        raise DatasetError(
            "The list of ids belongs to another split.",
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
        raise DatasetError(
            "The list of ids names no example of the requested tasks.", where=str(file), why=", ".join(dataset.tasks)
        )
    return tuple(dict.fromkeys(example_ids))
