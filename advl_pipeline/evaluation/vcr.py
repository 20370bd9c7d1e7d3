"""VCR accuracies: Q->A, QA->R given the right answer, and Q->AR, where both must be right.

Legend: N questions, 4 choices. Checked against r2c's `eval_q2ar.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import DatasetError

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, slots=True)
class VcrAccuracy:
    """Accuracies in percent, and per question whether it was right (N,) bool."""

    q2a: float
    qa2r: float
    q2ar: float
    answer_right_N: npt.NDArray[np.bool_]
    rationale_right_N: npt.NDArray[np.bool_]
    both_right_N: npt.NDArray[np.bool_]


def choice_right(scores_N4: Scores, labels_N: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Tell per question whether the first maximum of its scores is the label.

    Raises:
        DatasetError: shapes do not fit, or a score is not a number (an argmax over NaN means nothing).
    """
    if scores_N4.ndim != 2 or len(scores_N4) != len(labels_N):
        raise DatasetError(
            "Scores do not fit the questions.", why=f"shape {scores_N4.shape} for {len(labels_N)} questions"
        )
    bad = np.isnan(scores_N4).any(axis=1)
    if bad.any():
        raise DatasetError("A score is not a number.", where=f"item {int(np.flatnonzero(bad)[0])}")
    right: npt.NDArray[np.bool_] = scores_N4.argmax(axis=1) == labels_N
    return right


def vcr_accuracy(
    answer_scores_N4: Scores,
    rationale_scores_N4: Scores,
    answer_labels_N: npt.NDArray[np.integer],
    rationale_labels_N: npt.NDArray[np.integer],
) -> VcrAccuracy:
    """Score VCR.

    Args:
        answer_scores_N4: logits or probabilities of the answers.
        rationale_scores_N4: of the rationales, given the right answer.
        answer_labels_N, rationale_labels_N: 0 to 3.

    Raises:
        DatasetError: no questions, shapes that do not fit, or NaN.
    """
    if not len(answer_labels_N):
        raise DatasetError("There is nothing to score.")
    answer_right_N = choice_right(answer_scores_N4, answer_labels_N)
    rationale_right_N = choice_right(rationale_scores_N4, rationale_labels_N)
    both_right_N = answer_right_N & rationale_right_N
    return VcrAccuracy(
        q2a=100.0 * int(answer_right_N.sum()) / len(answer_right_N),
        qa2r=100.0 * int(rationale_right_N.sum()) / len(answer_right_N),
        q2ar=100.0 * int(both_right_N.sum()) / len(answer_right_N),
        answer_right_N=answer_right_N,
        rationale_right_N=rationale_right_N,
        both_right_N=both_right_N,
    )
