"""Accuracy by kind: of question, of answer, of class.

Shapes: n items, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.vqa_annotations import ANSWER_TYPES
from advl_pipeline.evaluation.items import AnsweredDataset, ItemScores
from advl_pipeline.evaluation.snli_ve import snli_ve_accuracy


def accuracy_by(kinds: Sequence[str], score_n: npt.NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Return accuracy in percent and number of items of each kind; `kinds` names that of each item."""
    kind_n = np.array(kinds)
    return {
        kind: {"accuracy": 100.0 * float(score_n[kind_n == kind].mean()), "num_items": int((kind_n == kind).sum())}
        for kind in sorted(set(kinds))
    }


def accuracy_by_answer_type(items: ItemScores, dataset: AnsweredDataset) -> dict[str, dict[str, float]]:
    """Return accuracy and number of VQA's questions whose answer is yes/no, a number, or other."""
    found = accuracy_by([dataset.ground_truth(name).answer_type for name in items.question_ids], items.score)
    return {kind: found[kind] for kind in ANSWER_TYPES if kind in found}


def confusion(
    scores_nC: npt.NDArray[np.floating], label_n: npt.NDArray[np.int64], label_names: Sequence[str]
) -> dict[str, Any]:
    """Return SNLI-VE's confusion matrix: rows are true classes, columns what the student called them."""
    counts_CC = snli_ve_accuracy(scores_nC.argmax(axis=1), label_n, label_names).confusion_CC
    return {"label_names": list(label_names), "counts": counts_CC.tolist()}
