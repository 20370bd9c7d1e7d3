"""Calibration: is a student right as often as it is sure?

Shapes: N items, C candidates or classes. Source: expected calibration error with equal-width bins (Naeini 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

ScoreKind = Literal["compete", "independent", "likelihood"]
"""Classes that compete (softmax), that are judged one by one (VQA's soft labels: sigmoid), or that are texts, whose
likelihoods are among all texts."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Items whose confidence falls into one bin; both means lie in [0, 1]."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Bins that hold items, by rising confidence, and the expected calibration error in points."""

    bins: tuple[ReliabilityBin, ...]
    expected_error: float


def top_confidence(scores_NC: npt.NDArray[np.floating], *, kind: ScoreKind) -> FloatArray:
    """Return the probability (N,) that the student gives to what it answers.

    Args:
        scores_NC: logits, or logarithms of likelihoods.
        kind: see `ScoreKind`.
    """
    scores = np.asarray(scores_NC, dtype=np.float64)
    if kind == "compete":
        scores = softmax(scores, axis=1)
    else:
        scores = expit(scores) if kind == "independent" else np.exp(scores)
    top: FloatArray = scores.max(axis=1)
    return top


def reliability(confidence_N: FloatArray, correct_N: FloatArray, *, num_bins: int = 10) -> Reliability:
    """Compare confidence and accuracy in equal-width bins over [0, 1].

    Raises:
        ValueError: the two differ in length, or there is no item.
    """
    if confidence_N.shape != correct_N.shape or confidence_N.size == 0:
        raise ValueError(f"confidence {confidence_N.shape} and correctness {correct_N.shape} are not paired")
    index_N = np.minimum((confidence_N * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for index in np.unique(index_N):
        inside = index_N == index
        bins.append(
            ReliabilityBin(
                confidence=float(confidence_N[inside].mean()),
                accuracy=float(correct_N[inside].mean()),
                count=int(inside.sum()),
            )
        )
    error = sum(item.count * abs(item.confidence - item.accuracy) for item in bins) / confidence_N.size
    return Reliability(bins=tuple(bins), expected_error=100.0 * error)
