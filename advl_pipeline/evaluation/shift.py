"""The drop from a test set to its shifted version, on the same questions.

Several shifted sets hold only a part of the original questions (VCR's rule-based sets, the hard part of SNLI-VE). A
drop is between two accuracies over the same questions, or it mixes the shift with the choice of questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import DatasetError
from advl_pipeline.evaluation.items import ItemScores


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftDrop:
    """Accuracies in percent over the common questions.

    `points` is original minus shifted; `relative` is the same in percent of the original, NaN where that is 0. They
    are never mixed. `original_n` and `shifted_n` are the paired scores, for statistics.
    """

    num_items: int
    original: float
    shifted: float
    points: float
    relative: float
    original_n: npt.NDArray[np.float32]
    shifted_n: npt.NDArray[np.float32]


def shift_drop(original: ItemScores, shifted: ItemScores) -> ShiftDrop:
    """Compare scores on the questions that both sets hold, in the order of the shifted set.

    Raises:
        DatasetError: they have no question in common.
    """
    score_of = dict(zip(original.question_ids, original.score.tolist(), strict=True))
    pairs = [
        (score_of[question], score)
        for question, score in zip(shifted.question_ids, shifted.score.tolist(), strict=True)
        if question in score_of
    ]
    if not pairs:
        raise DatasetError("The shifted set has no question in common with the original one.")
    both = np.array(pairs, dtype=np.float32)
    before, after = (100.0 * float(both[:, side].mean(dtype=np.float64)) for side in range(2))
    return ShiftDrop(
        num_items=len(pairs),
        original=before,
        shifted=after,
        points=before - after,
        relative=100.0 * (before - after) / before if before else float("nan"),
        original_n=both[:, 0],
        shifted_n=both[:, 1],
    )
