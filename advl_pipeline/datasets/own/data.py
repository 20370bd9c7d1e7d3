"""Data that are given as rows, indexed, before one of their splits is opened: tasks and splits by what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from advl_pipeline.datasets.cards import ReadOptions
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.own.columns import MADE_OF
from advl_pipeline.datasets.own.remote_pictures import HeldPictures
from advl_pipeline.datasets.own.sources import find_source
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import HUB_PREFIX, index_folder, is_own_data
from advl_pipeline.datasets.rows import COLUMNS, DataCard, Reading, RowSource, RowVariant
from advl_pipeline.datasets.vqa_answers import build_vocabulary

NUM_AGREEING = 3
"""Answers that agree make an answer fully right, or all of them where there are fewer."""


_CALLED = {"pictures": "pictures alone"}
"""What data are called that have no task."""


@dataclass(frozen=True)
class OwnData:
    """A dataset of rows before one of its splits is opened."""

    name: str
    rows: RowSource
    index: Index

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that its columns give."""
        return self.index.tasks

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that hold rows."""
        return self.index.splits

    def line(self) -> str:
        """Return the line that tells a user what was made of the columns."""
        index, columns = self.index, self.index.facts["columns"]
        made_of = [column for column in MADE_OF[index.kind] if column in columns]
        sections = {
            f"{self.name}: {_CALLED.get(index.kind, f'task {index.kind}')}, from the columns ": made_of,
            "also ": [column for column in COLUMNS if column in columns and column not in made_of],
            "left alone: ": sorted(set(columns) - set(COLUMNS)),
            "": [f"{len(index.rows_of(split)):,} {split}" for split in index.splits],
        }
        parts = [what + ", ".join(names) for what, names in sections.items() if names]
        if left := index.facts["left_out"]:
            parts.append(", ".join(map(index.left_out, left)))
        if bad := len(index.facts["problems"]):
            parts.append(f"{bad:,} malformed")
        return "; ".join(parts)

    def open(self, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
        """Open a split, which must be one of `splits`.

        Args:
            root: folder of the datasets, where copies of repositories of the hub lie.
            options: `answers` holds names of classes or answers; None for those that `class_names` finds.

        Raises:
            DatasetError: a row or a picture is malformed, or nothing is usable.
        """
        index = self.index
        if options.answers is None or index.kind == "choice":
            classes = partial(class_names, index, self.rows.card, [split])
        else:
            classes = partial(tuple, options.answers)
        is_labelled = index.is_labelled(split)
        reading = Reading(
            # A rationale is for the right answer: where nobody knows it, there is nothing to choose for.
            # Ids carry the task whenever there are several, whichever of them are opened.
            variants=tuple(
                RowVariant(task, f":{task}" if len(self.tasks) > 1 else "")
                for task in options.tasks
                if task != "rationale" or is_labelled
            ),
            classes=classes,
            scores=agreement_scores,
            called=self.rows.called,
            is_confined=self.rows.is_confined,
            # Rows of files on this machine have their pictures here, too.
            held=None if self.rows.files else HeldPictures(root, index.folder),
            card=self.rows.card,
        )
        dataset = IndexedDataset(index, reading, split=split, on_error=options.on_error)
        if index.kind == "classes" and is_labelled:
            dataset.require_known_classes()
        return dataset


def agreement_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Return answer -> its score: min(1, k / min(3, n)) for one that k of n gave; a single answer is right or not."""
    needed = min(NUM_AGREEING, sum(counts.values()))
    return {answer: min(1.0, count / needed) for answer, count in counts.items()}


def class_names(index: Index, card: DataCard, opened: Sequence[str]) -> tuple[str, ...]:
    """Return the classes or answers that splits opened together share: the card's, else those of train.

    Where no split is called train, they are those of the opened splits, all counted at once: a class number means
    the same in each of them. Choices have none.
    """
    if index.kind in ("choice", "pictures"):
        return ()
    if index.kind == "classes" and card.labels:
        return card.labels
    counted = ["train"] if "train" in index.splits else opened
    counts = index.label_counts(np.concatenate([index.rows_of(split) for split in counted]))
    if index.kind == "answers":
        return build_vocabulary(counts.items(), min_occurrences=card.min_answer_count, form=str)
    # Classes that are numbers are sorted as numbers, before the others.
    used = [name for name, count in counts.items() if count]
    return tuple(sorted(used, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


_opened: dict[tuple[str, Path | None, Path], tuple[object, OwnData]] = {}
"""What this process has opened: a command says what data are, refuses what they lack, and reads them."""


def open_own(name: str, data_root: Path | None) -> OwnData:
    """Find and index a dataset of rows; once in a process while its files are the same.

    Raises:
        ConfigError: a card that cannot be used.
        DatasetError: there are no such data, or no row of them can be used.
    """
    on_hub = name.startswith(HUB_PREFIX) and not Path(name.removeprefix(HUB_PREFIX).partition(":")[0]).exists()
    here = (name, data_root, Path.cwd())
    if on_hub and here in _opened:
        return _opened[here][1]
    rows, home = find_source(name, data_root)
    folder = index_folder(home, home if is_own_data(name) else home / name)
    files = [
        (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for status in map(Path.stat, rows.files)
    ]
    state = (folder, rows.version, repr(rows.card), rows.pictures, files)
    if here not in _opened or _opened[here][0] != state:
        _opened[here] = (state, OwnData(name, rows, open_index(rows, dataset=name, folder=folder)))
    return _opened[here][1]
