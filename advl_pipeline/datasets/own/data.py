"""Specification of data given as rows: tasks and splits from their index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from advl_pipeline.datasets.cards import COLUMNS, Card
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.own.columns import MADE_OF
from advl_pipeline.datasets.own.remote_pictures import HeldPictures
from advl_pipeline.datasets.own.sources import find_source
from advl_pipeline.datasets.problems import written_number
from advl_pipeline.datasets.reading import Reading, RowVariant
from advl_pipeline.datasets.roots import index_folder, is_location, resolve_data_root
from advl_pipeline.datasets.spec import DatasetSpec, ReadOptions
from advl_pipeline.datasets.vqa_answers import build_vocabulary

NUM_AGREEING = 3
"""Number of people who must agree for the full score of an answer; all of them if there are fewer."""

_CALLED = {"pictures": "pictures alone"}
"""Name of data without a task."""


def _line(name: str, index: Index) -> str:
    """Return the line that tells the user how the columns were interpreted."""
    columns = index.facts["columns"]
    made_of = [column for column in MADE_OF[index.kind] if column in columns]
    sections = {
        f"{name}: {_CALLED.get(index.kind, f'task {index.kind}')}, from the columns ": made_of,
        "also ": [column for column in COLUMNS if column in columns and column not in made_of],
        "left alone: ": sorted(set(columns) - set(COLUMNS)),
        "": [f"{len(index.rows_of(split)):,} {split}" for split in index.splits],
    }
    parts = [what + ", ".join(names) for what, names in sections.items() if names]
    if settled := index.facts["settled"]:
        parts.append(f"read as with a card of the lines {settled}")
    if left := index.facts["left_out"]:
        parts.append(", ".join(map(index.left_out, left)))
    if bad := len(index.facts["problems"]):
        parts.append(f"{bad:,} malformed")
    return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class RowsReading(Reading):
    """Rules for reading rows; `opened` are the splits that are opened together and share their classes."""

    index: Index
    opened: Sequence[str]

    def classes(self) -> tuple[str, ...]:
        """Return the classes or answers: the given ones, else the card's, else those of train.

        Without a split named train, they are those of all opened splits together, so that a class number means the
        same in each of them. Choices have none.
        """
        index, card = self.index, self.index.source.card
        if index.kind in ("choice", "pictures"):
            return ()
        if self.given is not None:
            return self.given
        if index.kind == "classes" and card.labels:
            return card.labels
        counted = ["train"] if "train" in index.splits else self.opened
        counts = index.label_counts(np.concatenate([index.rows_of(split) for split in counted]))
        if index.kind == "answers":
            return build_vocabulary(counts.items(), min_occurrences=card.min_answer_count, form=str)
        # Numeric classes are sorted as numbers, before the others.
        used = [name for name, count in counts.items() if count]
        return tuple(sorted(used, key=lambda name: ((number := written_number(name)) is None, number or 0, name)))

    def scores(self, people: Mapping[str, int]) -> Mapping[str, float]:
        return agreement_scores(people)


@dataclass(frozen=True, kw_only=True)
class RowsDataset(DatasetSpec):
    """A dataset of rows that are read and indexed."""

    index: Index

    def open(self, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
        index = self.index
        is_labelled = index.is_labelled(split)
        reading = RowsReading(
            index=index,
            given=options.answers,
            opened=options.together or [split],
            # A rationale explains the right answer; without a label the task has no input.
            # Ids include the task if the data have several, no matter which of them are opened.
            variants=tuple(
                RowVariant(task, f":{task}" if len(index.tasks) > 1 else "")
                for task in options.tasks
                if task != "rationale" or is_labelled
            ),
            # Rows of local files have local pictures.
            held=None if index.source.files else HeldPictures(resolve_data_root(data_root), index.folder),
        )
        dataset = IndexedDataset(index, reading, split=split, on_error=options.on_error)
        if index.kind == "classes" and is_labelled:
            dataset.require_known_classes()
        return dataset


class UnreadRows(DatasetSpec):
    """A dataset of rows with a published card, which are not read yet."""

    def read(self, data_root: Path | None) -> RowsDataset:
        """Return it with its rows read and indexed.

        Raises:
            DatasetError: the data do not exist, or none of their rows is usable.
        """
        rows = rows_dataset(self.name, data_root, self.card)
        return replace(rows, tasks=self.tasks, splits=self.splits)

    def open(self, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
        """Read the rows, and open a split; raises the errors of both steps."""
        return self.read(data_root).open(split, data_root, options)


def agreement_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Return answer -> score: min(1, k / min(3, n)) for k of n people; a single answer is right or wrong."""
    needed = min(NUM_AGREEING, sum(counts.values()))
    return {answer: min(1.0, count / needed) for answer, count in counts.items()}


def rows_dataset(name: str, data_root: Path | None, card: Card | None = None) -> RowsDataset:
    """Find and index a dataset of rows.

    Args:
        card: the published card of that name, if there is one.

    Raises:
        ConfigError: the card cannot be used.
        DatasetError: the data do not exist, or none of their rows is usable.
    """
    rows, home = find_source(name, data_root, card or Card())
    index = open_index(rows, dataset=name, folder=index_folder(home, home if is_location(name) else home / name))
    return RowsDataset(
        name=name,
        card=rows.card,
        tasks=index.tasks,
        splits=index.splits,
        index=index,
        labelled=tuple(filter(index.is_labelled, index.splits)),
        line=_line(name, index),
        is_described=card is not None,
    )
