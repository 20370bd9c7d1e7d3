"""The prior of the question: what is right without looking, by the answers that training gives to the same words.

A student of two epochs may be right on most questions and have learned at most that "is there a circle?" is
mostly answered by no. So its scores stand next to this one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from advl_pipeline.datasets.indexed import IndexedDataset


class QuestionPrior:
    """The commonest training answer to each question, and to all of them for a question that training lacks.

    Args:
        train: the labelled splits, opened with one list of classes or answers.
    """

    def __init__(self, train: Iterable[IndexedDataset]) -> None:
        counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for split in train:
            for words, worth in split.words_and_labels():
                for answer, value in worth.items():
                    counts[_words(words)][answer] += value  # type: ignore[assignment]  # Soft labels are shares.
        self._by_words = {words: _commonest(counter) for words, counter in counts.items()}
        total: Counter[int] = Counter()
        for counter in counts.values():
            total.update(counter)
        self._overall = _commonest(total)

    def summary(self, dataset: IndexedDataset, positions: Sequence[int]) -> dict[str, Any]:
        """Return percentages of some examples of a split that was opened with the same classes.

        `prior`: those that the prior answers correctly. `prior_known`: those whose question training has, too.
        """
        right, known = 0.0, 0
        for words, worth in dataset.words_and_labels(positions):
            answer = self._by_words.get(_words(words))
            known += answer is not None
            right += worth.get(self._overall if answer is None else answer, 0.0)
        return {"prior": 100.0 * right / len(positions), "prior_known": 100.0 * known / len(positions)}


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def _commonest(counts: Mapping[int, float]) -> int:
    return max(counts, key=lambda answer: (counts[answer], -answer), default=-1)
