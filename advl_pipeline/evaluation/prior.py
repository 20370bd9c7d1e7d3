"""The prior of the question: accuracy without the picture, from the training answers to the same words.

A student after two epochs may be right on most questions although it learned only that "is there a circle?" is
mostly answered with no. So its scores are reported next to the prior.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from advl_pipeline.datasets.indexed import IndexedDataset


class QuestionPrior:
    """The most common training answer to each question, or to all questions for one that is not in training.

    Args:
        train: the labelled splits, opened with the same list of classes or answers.
    """

    def __init__(self, train: Iterable[IndexedDataset]) -> None:
        counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for split in train:
            for words, worth in split.words_and_labels():
                for answer, value in worth.items():
                    counts[_words(words)][answer] += value  # type: ignore[assignment]  # Soft labels are fractions.
        self._by_words = {words: _commonest(counter) for words, counter in counts.items()}
        total: Counter[int] = Counter()
        for counter in counts.values():
            total.update(counter)
        self._overall = _commonest(total)

    def summary(self, dataset: IndexedDataset, positions: Sequence[int]) -> dict[str, Any]:
        """Return percentages of the given examples of a split that was opened with the same classes.

        `prior`: examples that the prior answers correctly. `prior_known`: examples whose question is in training too.
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
