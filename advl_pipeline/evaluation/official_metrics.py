"""VQA accuracy exactly as in the two official evaluators, and SNLI-VE accuracy with its confusion matrix.

Modes of VQA:
2021  (GT-Vision-Lab/VQA a013f00) normalises prediction and ground truth, but only if the cleaned answers of the
      annotators are not all the same; a unanimous "yes" is compared unchanged, so that "Yes" scores 0.
2017  (a4f1afd, which most re-implementations copy) always normalises the prediction; in the ground truth it strips
      only the punctuation, and only if the raw answers differ.
vqa-vs  min(k / 3, 1) of the k annotators who gave exactly the predicted answer; nothing is normalised (VQA-VS).

Shapes of SNLI-VE: N pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.vqa_answers import (
    GroundTruth,
    clean_answer,
    normalise_answer,
    parse_annotation,
    strip_punctuation,
)

VqaMode = Literal["2021", "2017", "vqa-vs"]


def question_accuracy(prediction: str, truth: GroundTruth, mode: VqaMode = "2021") -> float:
    """Return the accuracy of one prediction, in [0, 1]."""
    answer, answers = clean_answer(prediction), list(truth.answers)
    if mode == "2017":
        answer = normalise_answer(answer)
        if len(set(answers)) > 1:
            answers = [strip_punctuation(other) for other in answers]
    else:
        answers = [clean_answer(other) for other in answers]
        if mode == "2021" and len(set(answers)) > 1:
            answer, answers = normalise_answer(answer), [normalise_answer(other) for other in answers]
    if mode == "vqa-vs":
        return min(1.0, answers.count(answer) / 3)
    total = 0.0
    for left_out in range(len(answers)):
        # The original compares complete entries, so equal entries are left out together.
        matching = sum(
            other == answer and (other, entry) != (answers[left_out], truth.entries[left_out])
            for other, entry in zip(answers, truth.entries, strict=True)
        )
        total += min(1.0, matching / 3)
    return total / len(answers)


def vqa_accuracy(
    annotations: Iterable[Mapping[str, Any]], predictions: Mapping[int, str], mode: VqaMode = "2021"
) -> dict[str, Any]:
    """Score VQA: accuracies in percent, rounded to two decimals as the official program does.

    Args:
        annotations: items of the official annotation file, in its order.
        predictions: question id -> answer, for exactly the annotated questions.

    Raises:
        DatasetError: there is nothing to score. ValueError: an annotation is malformed.
    """
    per_question: dict[int, float] = {}
    by_answer_type: dict[str, list[float]] = {}
    by_question_type: dict[str, list[float]] = {}
    for question_id, _, truth in map(parse_annotation, annotations):
        accuracy = question_accuracy(predictions[question_id], truth, mode)
        per_question[question_id] = accuracy
        by_answer_type.setdefault(truth.answer_type, []).append(accuracy)
        by_question_type.setdefault(truth.question_type, []).append(accuracy)
    if not per_question:
        raise DatasetError("There is nothing to score.")
    return {
        "mode": mode,
        "num_items": len(per_question),
        "overall": _percent(per_question.values()),
        "per_answer_type": {name: _percent(values) for name, values in sorted(by_answer_type.items())},
        "per_question_type": {name: _percent(values) for name, values in sorted(by_question_type.items())},
        "per_question": {str(question_id): round(100 * value, 2) for question_id, value in per_question.items()},
    }


def _percent(values: Iterable[float]) -> float:
    """Return 100 times the mean, summed from the left as in the original, to two decimals."""
    total, count = 0.0, 0
    for value in values:
        total += value
        count += 1
    return round(100 * total / count, 2)


def snli_ve_accuracy(
    predicted_N: npt.NDArray[np.int64], labels_N: npt.NDArray[np.int64], label_names: Sequence[str]
) -> dict[str, Any]:
    """Score SNLI-VE: accuracy in percent, and `confusion[t][p]` (C, C), the pairs of class t predicted as p.

    Args:
        predicted_N, labels_N: class numbers in the order of `label_names`.

    Raises:
        DatasetError: nothing to score.
    """
    if not len(labels_N):
        raise DatasetError("There is nothing to score.")
    counts_CC = confusion_counts(predicted_N, labels_N, len(label_names))
    return {
        "num_items": len(labels_N),
        "accuracy": 100.0 * int(counts_CC.trace()) / len(labels_N),
        "label_names": list(label_names),
        "confusion": counts_CC.tolist(),
    }


def confusion_counts(
    predicted_N: npt.NDArray[np.int64], labels_N: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.int64]:
    """Return (C, C) the number of items of class t that are predicted as p, at [t, p]."""
    cell_N = labels_N * num_classes + predicted_N
    counts: npt.NDArray[np.int64] = np.bincount(cell_N, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)
