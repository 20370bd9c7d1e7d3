"""Which questions of a shifted set are questions of its original, and whether they are asked otherwise.

Questions are told by their ids. There are three cases, and only in the first is a drop over the common questions a
number of its own:
  - "same": the shifted set asks questions of the original otherwise, in other words or on another picture;
  - "part": it holds questions of the original as they are (the hard pairs of SNLI-VE, VQA-CE, VQA-VS). The choice is
    the shift: over the common questions nothing could ever drop, so the part is compared with the whole;
  - "other": the two have no question in common.

Shapes: n questions that both sets hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.registry import benchmark_of
from advl_pipeline.datasets.roots import set_name

Questions = Literal["same", "part", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionMatch:
    """How two sets go together. Row `original_n[i]` of the one is the question in row `shifted_n[i]` of the other."""

    questions: Questions
    original_n: npt.NDArray[np.int64]
    shifted_n: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Set:
    """A test set: the dataset that it is of, its split, its card where it has one, and what names its questions."""

    dataset: str
    split: str
    card: Card | None
    common_name: Callable[[str], str] = str


def original_of(dataset: str, shifted_set: str) -> str | None:
    """Return the set that the card of a shifted set compares it with, named as the shifted set is; None for none.

    Args:
        shifted_set: a split of it, or of another dataset as "dataset/split".
    """
    name, _, split = shifted_set.rpartition("/")
    card = _test_set(dataset, shifted_set).card
    original = card.splits.get(split, {}).get("compare_with") if card else None
    if original is None:
        return None
    return f"{name}/{original}" if name else str(original)


def match_questions(
    dataset: str, original_set: str, original_ids: Sequence[str], shifted_set: str, shifted_ids: Sequence[str]
) -> QuestionMatch:
    """Find the questions that two sets have in common.

    Args:
        original_set: a split of it, or of another dataset as "dataset/split".
        shifted_set: as `original_set`.
    """
    original, shifted = _test_set(dataset, original_set), _test_set(dataset, shifted_set)
    row_of = {original.common_name(question): row for row, question in enumerate(original_ids)}
    pairs = [
        (row_of[name], row)
        for row, question in enumerate(shifted_ids)
        if (name := shifted.common_name(question)) in row_of
    ]
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    found: Questions = "other" if not pairs else "part" if _asks_alike(original, shifted) else "same"
    return QuestionMatch(questions=found, original_n=rows[:, 0], shifted_n=rows[:, 1])


def question_namer(dataset: str, test_set: str) -> Callable[[str], str]:
    """Return what gives a question of a set the name that it has in all sets that ask it."""
    return _test_set(dataset, test_set).common_name


def _test_set(dataset: str, name: str) -> _Set:
    dataset, split = set_name(name, dataset)
    benchmark = benchmark_of(dataset)
    if benchmark is None:
        return _Set(dataset=dataset, split=split, card=None)
    return _Set(dataset=dataset, split=split, card=benchmark.card, common_name=partial(benchmark.common_name, split))


def _asks_alike(original: _Set, shifted: _Set) -> bool:
    """Whether a common id stands for the same words on the same picture with the same answer in both sets.

    A VQA id names question, picture and answers; elsewhere a part is read from the annotations of its original.
    """
    if original.card is None or shifted.card is None:
        return False
    formats = {original.card.format, shifted.card.format}
    files = {original.card.splits.get(original.split, {}).get("annotations")}
    files.add(shifted.card.splits.get(shifted.split, {}).get("annotations"))
    same_file = original.dataset == shifted.dataset and len(files) == 1 and None not in files
    return formats == {"vqa"} or same_file
