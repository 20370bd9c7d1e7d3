"""The classes and answers of one's own data, and what an answer scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.rows import DataCard

NUM_AGREEING = 3
"""Answers that agree make an answer fully right, or all of them where there are fewer."""


def answer_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Return answer -> its score: min(1, k / min(3, n)) for one that k of n gave; a single answer is right or not."""
    needed = min(NUM_AGREEING, sum(counts.values()))
    return {answer: min(1.0, count / needed) for answer, count in counts.items()}


def class_names(index: Index, card: DataCard, opened: Sequence[str]) -> tuple[str, ...]:
    """Return the classes or answers that splits opened together share: the card's, else those of train.

    Where no split is called train, they are those of the opened splits, all counted at once: a class number means
    the same in each of them. Choices have none.
    """
    if index.kind == "choice":
        return ()
    if index.kind == "classes" and card.labels:
        return card.labels
    names, labels = index.file.names("label_name"), index.file.numbers("label")
    of = ["train"] if "train" in index.splits else opened
    codes = np.concatenate([labels[index.rows_of(split)] for split in of])
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    if index.kind == "classes":
        return tuple(sorted((names[code] for code, count in enumerate(counts) if count), key=_by_number))
    found = sorted((-count, names[code]) for code, count in enumerate(counts))
    return tuple(name for count, name in found if -count >= card.min_answer_count)


def _by_number(name: str) -> tuple[bool, int, str]:
    """Sort classes that are numbers as numbers, before the others."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
