"""The prior of the question: accuracy without the picture, from the training answers to the same words.

A student after two epochs may be right on most questions although it learned only that "is there a circle?" is
mostly answered with no. So its scores are reported next to the prior.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.runs.evaluations import TrivialScores


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

    def beside(self, trivial: TrivialScores, dataset: IndexedDataset, positions: Sequence[int]) -> TrivialScores:
        """Return trivial scores with the prior of these examples of a split that was opened with the same classes."""
        right, known = 0.0, 0
        for words, worth in dataset.words_and_labels(positions):
            answer = self._by_words.get(_words(words))
            known += answer is not None
            right += worth.get(self._overall if answer is None else answer, 0.0)
        num = len(positions)
        return replace(trivial, prior=100.0 * right / num, prior_known=100.0 * known / num)


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def _commonest(counts: Mapping[int, float]) -> int:
    return max(counts, key=lambda answer: (counts[answer], -answer), default=-1)
