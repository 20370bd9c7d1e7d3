"""Scores per item: what paired statistics are made of.

Shapes: n items, C candidates or classes, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.vqa_annotations import GroundTruth
from advl_pipeline.errors import DatasetError
from advl_pipeline.evaluation.vqa import VqaMode, question_accuracy


class AnsweredDataset(Protocol):
    """A VQA split with its annotators' answers."""

    def ground_truth(self, example_id: str) -> GroundTruth: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemScores:
    """One score in [0, 1] per question, with the questions' ids."""

    question_ids: tuple[str, ...]
    score: npt.NDArray[np.float32]


def question_id(example: Example) -> str:
    """Return the id of the question that an example asks: its id without the task."""
    return example.example_id.removesuffix(f":{example.task}")


def score_items(examples: Sequence[Example], scores_nC: npt.NDArray[np.float32]) -> ItemScores:
    """Score the first maximum of each row against the label: 1 or 0.

    Raises:
        DatasetError: an item without a label.
    """
    chosen = scores_nC.argmax(1)
    values = np.zeros(len(examples), dtype=np.float32)
    for row, (example, choice) in enumerate(zip(examples, chosen.tolist(), strict=True)):
        if example.label is None:
            raise DatasetError(
                "An item has no label, so it cannot be scored.",
                where=example.example_id,
                next_command="advl predict writes what a leaderboard takes",
            )
        values[row] = float(choice == example.label)
    return ItemScores(question_ids=tuple(question_id(example) for example in examples), score=values)


def score_answers(
    examples: Sequence[Example],
    scores_nK: npt.NDArray[np.float32],
    *,
    answers: Sequence[str],
    dataset: AnsweredDataset,
    mode: VqaMode,
) -> ItemScores:
    """Score the answer of each row's first maximum as the official VQA evaluator does, against what annotators said.

    Args:
        answers: of the run's head, by class; another dataset's vocabulary does not matter.

    Raises:
        DatasetError: the split has no public answers.
    """
    values = [
        question_accuracy(answers[choice], dataset.ground_truth(example.example_id), mode)
        for example, choice in zip(examples, scores_nK.argmax(1).tolist(), strict=True)
    ]
    return ItemScores(
        question_ids=tuple(question_id(example) for example in examples), score=np.array(values, dtype=np.float32)
    )


def joint_items(answers: ItemScores, rationales: ItemScores) -> ItemScores:
    """Return Q->AR: right only where answer and rationale of a question are both right."""
    rationale_of = dict(zip(rationales.question_ids, rationales.score.tolist(), strict=True))
    kept = [
        (question, score * rationale_of[question])
        for question, score in zip(answers.question_ids, answers.score.tolist(), strict=True)
        if question in rationale_of
    ]
    return ItemScores(
        question_ids=tuple(question for question, _ in kept),
        score=np.array([score for _, score in kept], dtype=np.float32),
    )
