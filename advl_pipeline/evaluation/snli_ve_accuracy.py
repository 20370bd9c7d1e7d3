"""SNLI-VE: accuracy over three classes and the confusion matrix. Legend: N pairs, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import DatasetError


@dataclass(frozen=True, kw_only=True, slots=True)
class SnliVeAccuracy:
    """Accuracy in percent; `counts[t][p]`, C by C, are the pairs of class t that were called p."""

    num_items: int
    accuracy: float
    label_names: tuple[str, ...]
    counts: list[list[int]]


def snli_ve_accuracy(
    predicted_N: npt.NDArray[np.int64], labels_N: npt.NDArray[np.int64], label_names: Sequence[str]
) -> SnliVeAccuracy:
    """Score SNLI-VE.

    Args:
        predicted_N, labels_N: class numbers in the order of `label_names`.

    Raises:
        DatasetError: nothing to score.
    """
    if not len(labels_N):
        raise DatasetError("There is nothing to score.")
    count = len(label_names)
    counts_CC = np.bincount(labels_N * count + predicted_N, minlength=count * count).reshape(count, count)
    return SnliVeAccuracy(
        num_items=len(labels_N),
        accuracy=100.0 * int(counts_CC.trace()) / len(labels_N),
        label_names=tuple(label_names),
        counts=counts_CC.tolist(),
    )
