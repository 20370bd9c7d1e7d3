"""Adaptive Confidence-based Weighting: how much each instance is distilled.

The paper fixes that instances are weighted by confidence. The formula is our reading (METHOD.md):
w(x) = min(w_max, c_T(x) / (sg c_S(x) + eps)): distil more where the teacher is right and the student is not.
Shapes: B examples, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch

Weighting = Literal["ratio", "teacher", "gap", "uniform"]

EPSILON = 1e-3


def instance_weights(
    kind: Weighting, *, teacher_B: torch.Tensor, student_B: torch.Tensor, weight_max: float
) -> torch.Tensor:
    """Return (B,) weights in [0, weight_max], without gradient.

    Args:
        kind: `ratio` c_T / c_S; `teacher` c_T; `gap` max(0, c_T - c_S); `uniform` 1.
        teacher_B: c_T, probability that the teacher's probe gives the ground truth.
        student_B: c_S, the student's own; detached here.
        weight_max: upper bound.
    """
    teacher, student = teacher_B.detach(), student_B.detach()
    if kind == "uniform":
        return torch.ones_like(teacher)
    if kind == "teacher":
        weights = teacher
    elif kind == "gap":
        weights = (teacher - student).clamp(min=0.0)
    else:
        weights = teacher / (student + EPSILON)
    return weights.clamp(max=weight_max)


def normalise_to_batch_mean(weights_B: torch.Tensor) -> torch.Tensor:
    """Rescale weights to mean 1, so that weighting does not change the total strength; all-zero stays zero."""
    mean = weights_B.mean()
    return weights_B / mean if mean > 0 else weights_B


def choice_confidence(logits_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return (B,): softmax probability of the ground truth, for multiple choice and single-label classes."""
    return torch.softmax(logits_BC.float(), dim=1).gather(1, label_B[:, None]).squeeze(1)


def soft_label_confidence(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return (B,): c = sum_a score(a) p(a) / sum_a score(a) with p the sigmoid; 0 for an item without any answer."""
    probability = torch.sigmoid(logits_BK.float())
    total = scores_BK.sum(1)
    return (scores_BK * probability).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
