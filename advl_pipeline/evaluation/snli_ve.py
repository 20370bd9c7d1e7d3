"""SNLI-VE: accuracy over three classes and the confusion matrix. Legend: N pairs, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import DatasetError


@dataclass(frozen=True, kw_only=True, slots=True)
class SnliVeAccuracy:
    """Accuracy in percent; `confusion_CC[t, p]` counts pairs of class t that were called p; rights (N,) bool."""

    accuracy: float
    label_names: tuple[str, ...]
    confusion_CC: npt.NDArray[np.int64]
    right_N: npt.NDArray[np.bool_]


def snli_ve_accuracy(
    predicted_N: npt.NDArray[np.integer], labels_N: npt.NDArray[np.integer], label_names: Sequence[str]
) -> SnliVeAccuracy:
    """Score SNLI-VE.

    Args:
        predicted_N, labels_N: class numbers in the order of `label_names`.

    Raises:
        DatasetError: nothing to score, lengths that differ, or a class out of range.
    """
    if not len(labels_N) or len(predicted_N) != len(labels_N):
        raise DatasetError(
            "Predictions do not fit the pairs.", why=f"{len(predicted_N)} predictions for {len(labels_N)} pairs"
        )
    count = len(label_names)
    both = np.concatenate([predicted_N, labels_N])
    if both.min() < 0 or both.max() >= count:
        raise DatasetError("A class is out of range.", why=f"classes are 0 to {count - 1}: {', '.join(label_names)}")
    cells = labels_N.astype(np.int64) * count + predicted_N.astype(np.int64)
    right_N: npt.NDArray[np.bool_] = predicted_N == labels_N
    return SnliVeAccuracy(
        accuracy=100.0 * int(right_N.sum()) / len(right_N),
        label_names=tuple(label_names),
        confusion_CC=np.bincount(cells, minlength=count * count).reshape(count, count).astype(np.int64),
        right_N=right_N,
    )


def confusion(
    scores_nC: npt.NDArray[np.floating], label_n: npt.NDArray[np.int64], label_names: Sequence[str]
) -> dict[str, Any]:
    """Return SNLI-VE's confusion matrix: rows are true classes, columns what the student called them."""
    counts_CC = snli_ve_accuracy(scores_nC.argmax(axis=1), label_n, label_names).confusion_CC
    return {"label_names": list(label_names), "counts": counts_CC.tolist()}
