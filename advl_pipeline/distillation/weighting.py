"""Adaptive Confidence-based Weighting: how much each instance is distilled.

The paper fixes that instances are weighted by confidence. The formula is our reading (docs/method.md):
w(x) = min(w_max, c_T(x) / (sg c_S(x) + eps)): distil more where the teacher is right and the student is not.
Shapes: B examples, K classes.
"""

from __future__ import annotations

import torch

from advl_pipeline.distillation.relational import Everywhere
from advl_pipeline.distillation.settings import DistillationSettings, Weighting
from advl_pipeline.distillation.signal import TeacherSignal

EPSILON = 1e-3


def pathway_weights(
    settings: DistillationSettings,
    signal: TeacherSignal,
    modality: str,
    student_B: torch.Tensor,
    *,
    everywhere: Everywhere,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return (B,) instance weights of a pathway from the teacher's and the student's confidence.

    A joint confidence serves both pathways; without any confidence the weights are uniform. None exceeds
    `weight_max`, normalised or not.
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
        order_B = torch.randperm(len(weights_B), generator=generator).to(weights_B.device)
        weights_B = weights_B.index_copy(0, order_B, weights_B[order_B.roll(1)])
    if settings.weight_normalise == "batch-mean":
        weights_Y = normalise_to_batch_mean(everywhere.rows(weights_B), weight_max=settings.weight_max)
        weights_B = everywhere.own(weights_Y, weights_B)
    return weights_B


def instance_weights(
    kind: Weighting, *, teacher_B: torch.Tensor, student_B: torch.Tensor, weight_max: float
) -> torch.Tensor:
    """Return (B,) weights in [0, weight_max], without gradient.

    Args:
        kind: `ratio` c_T / c_S; `teacher` c_T; `gap` max(0, c_T - c_S); `uniform` 1; each at most weight_max.
        teacher_B: c_T, probability that the teacher's probe gives the ground truth.
        student_B: c_S, the student's own; detached here.
        weight_max: upper bound.
    """
    teacher, student = teacher_B.detach(), student_B.detach()
    if kind == "uniform":
        weights = torch.ones_like(teacher)
    elif kind == "teacher":
        weights = teacher
    elif kind == "gap":
        weights = (teacher - student).clamp(min=0.0)
    else:
        weights = teacher / (student + EPSILON)
    return weights.clamp(max=weight_max)


def normalise_to_batch_mean(weights_B: torch.Tensor, *, weight_max: float) -> torch.Tensor:
    """Rescale weights to mean 1, so that weighting does not change the total strength; no weight exceeds the bound.

    All weights are multiplied by one factor; what that lifts above the bound is cut, and the cut is spread over the
    others in proportion to them, until the mean is 1 (water-filling). Where the positive weights cannot reach it,
    because they are too few or the bound is below 1, all of them are at the bound. A weight of 0 stays 0: the teacher
    has nothing to say there.

    Args:
        weights_B: at least 0; their scale does not matter.
        weight_max: upper bound.
    """
    top = weights_B.max()
    if not top > 0:
        return weights_B
    sorted_B, order_B = torch.sort(weights_B / top, descending=True)
    place_B = torch.arange(len(sorted_B), device=weights_B.device)
    # With the k largest at the bound, what is left of the total for the others, and the sum that it is shared by.
    left_B = len(sorted_B) - weight_max * place_B.to(weights_B.dtype)
    others_B = sorted_B.flip(0).cumsum(0).flip(0)
    num_at_bound = (left_B * sorted_B > weight_max * others_B).sum()
    first = num_at_bound.clamp(max=len(sorted_B) - 1)
    shared_B = left_B[first] * (sorted_B / others_B[first].clamp(min=torch.finfo(weights_B.dtype).tiny))
    filled_B = torch.where(place_B < num_at_bound, weight_max, shared_B).clamp(max=weight_max)
    return torch.empty_like(weights_B).scatter(0, order_B, filled_B)


def choice_confidence(logits_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return (B,): softmax probability of the ground truth, for multiple choice and single-label classes."""
    return torch.softmax(logits_BC.float(), dim=1).gather(1, label_B[:, None]).squeeze(1)


def soft_label_confidence(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return (B,): c = sum_a score(a) p(a) / sum_a score(a) with p the sigmoid; 0 for an item without any answer."""
    probability = torch.sigmoid(logits_BK.float())
    total = scores_BK.sum(1)
    return (scores_BK * probability).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
