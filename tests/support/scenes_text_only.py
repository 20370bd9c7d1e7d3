"""Text-only baselines: the figures in the corpus card.

Log-linear models over words, word pairs and, for multiple choice, pairs of a context word and a choice word.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import sparse

from advl_pipeline.base.logistic import fit_logistic, of_candidates, of_classes
from advl_pipeline.datasets.records import Candidate, Example

_MIN_COUNT: Final = 2
_PENALTY: Final = 1e-3


def measure_text_only(train: Sequence[Example], test: Sequence[Example]) -> tuple[float, float, float]:
    """Fit on train and evaluate on test.

    Returns:
        The accuracy in percent; the baseline, which is chance for multiple choice, else the best constant per
        question type; and the standard error of the baseline.
    """
    num_choices = len(train[0].candidates)
    labels = np.array([example.label for example in train])
    counts = Counter(gram for example in train for choice in example.candidates for gram in _features(choice))
    columns = {gram: column for column, gram in enumerate(sorted(g for g, n in counts.items() if n >= _MIN_COUNT))}
    weights = fit_logistic(
        _matrix(train, columns),
        of_candidates(labels) if num_choices > 1 else of_classes(labels),
        num_examples=len(train),
        penalty=2 * _PENALTY,
        start_XO=np.zeros((len(columns) + 1, 1 if num_choices > 1 else labels.max() + 1)),
    )
    chosen = (_matrix(test, columns) @ weights[:-1] + weights[-1]).reshape(len(test), -1).argmax(axis=1).tolist()
    constants: dict[str, Counter[int]] = {}
    for example in train:
        constants.setdefault(example.stratum, Counter())[int(example.label or 0)] += 1
    constant = [constants[example.stratum].most_common(1)[0][0] for example in test]
    baseline = 100 / num_choices if num_choices > 1 else _percent(test, constant)
    share = baseline / 100
    return _percent(test, chosen), baseline, float(100 * np.sqrt(share * (1 - share) / len(test)))


def _percent(examples: Sequence[Example], chosen: Sequence[int]) -> float:
    scores = [
        dict(example.soft_label).get(answer, 0.0) if example.soft_label else float(example.label == answer)
        for example, answer in zip(examples, chosen, strict=True)
    ]
    return float(100 * np.mean(scores))


def _features(choice: Candidate) -> set[str]:
    context, words = choice.text[: choice.context_length].split(), choice.answer.split()
    pairs = (f"{context_word}|{other}" for context_word in context for other in words)
    return {*words, *(f"{word} {other}" for word, other in itertools.pairwise(words)), *pairs}


def _matrix(examples: Sequence[Example], columns: dict[str, int]) -> sparse.csr_array:
    """Return the binary features, one row per choice."""
    choices = [choice for example in examples for choice in example.candidates]
    rows = [sorted(columns[gram] for gram in _features(choice) if gram in columns) for choice in choices]
    starts = np.cumsum([0, *map(len, rows)])
    flat = np.array([column for row in rows for column in row], dtype=np.int64)
    return sparse.csr_array((np.ones(len(flat)), flat, starts), shape=(len(rows), len(columns)))
