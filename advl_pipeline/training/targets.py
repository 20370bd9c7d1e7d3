"""What the task asks of a batch: targets, loss and the student's confidence, by kind of task.

Losses are the ones that the students' originals use: softmax cross-entropy over the candidates or classes, and
for VQA's soft labels binary cross-entropy summed over the answers.
Shapes: B examples, N sequences, C candidates, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example
from advl_pipeline.distillation.weighting import choice_confidence, soft_label_confidence
from advl_pipeline.errors import DatasetError


@dataclass(kw_only=True)
class TaskTargets:
    """Targets of a batch. `label_B` is None for soft labels, `scores_BK` (float32) is None for the others."""

    is_choice: bool
    label_B: torch.Tensor | None
    scores_BK: torch.Tensor | None

    def to(self, device: torch.device) -> TaskTargets:
        """Return the targets on a device."""
        return TaskTargets(
            is_choice=self.is_choice,
            label_B=None if self.label_B is None else self.label_B.to(device),
            scores_BK=None if self.scores_BK is None else self.scores_BK.to(device),
        )


def head_name(task: str) -> str:
    """Return the head that a task uses; both VCR tasks share one, as in UNITER."""
    return "vcr" if task in MULTIPLE_CHOICE_TASKS else task


def collate_targets(examples: Sequence[Example], num_classes: int) -> TaskTargets:
    """Gather the targets of examples of one kind of task.

    Raises:
        DatasetError: an example without a label.
    """
    unlabelled = [example.example_id for example in examples if example.label is None and not example.soft_label]
    if examples[0].task == "vqa":
        scores = torch.zeros(len(examples), num_classes)
        for row, example in enumerate(examples):
            for index, score in example.soft_label:
                scores[row, index] = score
        return TaskTargets(is_choice=False, label_B=None, scores_BK=scores)
    if unlabelled:
        raise DatasetError("An example has no label; this split cannot be trained on.", where=unlabelled[0])
    labels = torch.tensor([example.label for example in examples])
    return TaskTargets(is_choice=examples[0].task in MULTIPLE_CHOICE_TASKS, label_B=labels, scores_BK=None)


def shape_logits(logits_NK: torch.Tensor, num_candidates: Sequence[int], is_choice: bool) -> torch.Tensor:
    """Return (B, C) for multiple choice, with -inf for candidates that an example lacks, else (B, K) unchanged."""
    if not is_choice:
        return logits_NK
    scores = torch.split(logits_NK.squeeze(-1), list(num_candidates))
    return torch.nn.utils.rnn.pad_sequence(list(scores), batch_first=True, padding_value=-torch.inf)


def task_loss(logits_BK: torch.Tensor, targets: TaskTargets) -> torch.Tensor:
    """Return the scalar task loss of a batch."""
    if targets.scores_BK is not None:
        return functional.binary_cross_entropy_with_logits(logits_BK, targets.scores_BK) * logits_BK.shape[1]
    assert targets.label_B is not None
    return functional.cross_entropy(logits_BK, targets.label_B)


def student_confidence(logits_BK: torch.Tensor, targets: TaskTargets) -> torch.Tensor:
    """Return (B,): the probability that the student gives to the ground truth, without gradient."""
    logits = logits_BK.detach()
    if targets.scores_BK is not None:
        return soft_label_confidence(logits, targets.scores_BK)
    assert targets.label_B is not None
    return choice_confidence(logits, targets.label_B)


def right_sequences(targets: TaskTargets, num_candidates: Sequence[int]) -> torch.Tensor:
    """Return (B,) int64: the sequence of each example's right candidate; the only one outside multiple choice."""
    starts = torch.tensor([0, *num_candidates[:-1]]).cumsum(0)
    if targets.is_choice and targets.label_B is not None:
        return starts.to(targets.label_B.device) + targets.label_B
    return starts
