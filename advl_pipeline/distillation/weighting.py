"""Adaptive Confidence-based Weighting: how much each instance is distilled.

The paper fixes that instances are weighted by confidence. The formula is our reading (docs/method.md):
w(x) = min(w_max, c_T(x) / (sg c_S(x) + eps)): distil more where the teacher is right and the student is not.
Shapes: B examples, K classes.
"""

from __future__ import annotations

import torch

from advl_pipeline.distillation.settings import DistillationSettings, Weighting
from advl_pipeline.distillation.signal import TeacherSignal

EPSILON = 1e-3


def pathway_weights(
    settings: DistillationSettings,
    signal: TeacherSignal,
    modality: str,
    student_B: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return (B,) instance weights of a pathway from the teacher's and the student's confidence.

    A joint confidence serves both pathways; without any confidence the weights are uniform. None exceeds
    `weight_max`.
    """
    teacher_B = signal.confidence.get(modality, signal.confidence.get("joint"))
    weights_B = instance_weights(
        "uniform" if teacher_B is None else settings.weighting,
        teacher_B=student_B if teacher_B is None else teacher_B,
        student_B=student_B,
        weight_max=settings.weight_max,
    )
    if settings.weight_shuffle:
        # A cycle: no instance keeps its own.
        order_B = torch.randperm(len(weights_B), generator=generator).to(weights_B.device, non_blocking=True)
        weights_B = weights_B.index_copy(0, order_B, weights_B.index_select(0, order_B.roll(1)))
    return weights_B


def instance_weights(
    kind: Weighting, *, teacher_B: torch.Tensor, student_B: torch.Tensor, weight_max: float
) -> torch.Tensor:
    """Return (B,) weights in [0, weight_max], without gradient.

    Args:
        kind: `ratio` c_T / c_S; `uniform` 1; `oracle` c_T, which labels then give; each at most weight_max.
        teacher_B: c_T, probability that the teacher's probe gives the ground truth.
        student_B: c_S, the student's own; detached here.
        weight_max: upper bound.
    """
    teacher, student = teacher_B.detach(), student_B.detach()
    if kind == "ratio":
        weights = teacher / (student + EPSILON)
    else:
        weights = torch.ones_like(teacher) if kind == "uniform" else teacher
    return weights.clamp(max=weight_max)


def choice_confidence(logits_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return (B,): softmax probability of the ground truth, for multiple choice and single-label classes."""
    return torch.softmax(logits_BC.float(), dim=1).gather(1, label_B[:, None]).squeeze(1)


def soft_label_confidence(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return (B,): c = sum_a score(a) p(a) / sum_a score(a) with p the sigmoid; 0 for an item without any answer."""
    probability = torch.sigmoid(logits_BK.float())
    total = scores_BK.sum(1)
    return (scores_BK * probability).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
