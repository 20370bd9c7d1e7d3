"""The two adaptive parts: the selection of words in a sequence, and the weight of each instance.

Adaptive Text Token Selection: the paper states that selection is adaptive at token level. The scores are our reading
(docs/method.md): s_j = alpha * prior_j + (1 - alpha) * vis_j, both min-max scaled within the instance; the top
ceil(rho * W) words are kept.

Adaptive Confidence-based Weighting: the paper states that instances are weighted by confidence. The formula is our
reading: w(x) = min(w_max, c_T(x) / (sg c_S(x) + eps)): distil more where the teacher is right and the student is
not.
Shapes: B examples, N sequences, W words, K classes.
"""

from __future__ import annotations

import torch

from advl_pipeline.datasets.words import ROUNDING
from advl_pipeline.distillation.settings import DistillationSettings, Selection
from advl_pipeline.distillation.signal import TeacherSignal

EPSILON = 1e-3

WEIGHT_MAX = 2.0
"""Upper bound of an instance's weight."""

PRIOR_SHARE = 0.5
"""Share of the prior in a word's score (alpha)."""

KEPT_SHARE = 0.3
"""Share of the words to keep (rho)."""


def pathway_weights(
    settings: DistillationSettings,
    signal: TeacherSignal,
    modality: str,
    student_B: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return (B,) instance weights of a pathway in [0, WEIGHT_MAX], without gradient.

    `ratio` is c_T / c_S, and `uniform` is 1. A joint confidence serves both pathways. Without any confidence the
    weights are uniform.

    Args:
        student_B: c_S, the student's probability of the ground truth.
        generator: shuffles.
    """
    teacher_B = signal.confidence.get(modality, signal.confidence.get("joint"))
    if teacher_B is None or settings.weighting == "uniform":
        weights_B = torch.ones_like(student_B)
    else:
        weights_B = teacher_B / (student_B.detach() + EPSILON)
    weights_B = weights_B.detach().clamp(max=WEIGHT_MAX)
    if settings.weight_shuffle:
        # A cyclic shift: no instance keeps its own weight.
        order_B = torch.randperm(len(weights_B), generator=generator).to(weights_B.device, non_blocking=True)
        weights_B = weights_B.index_copy(0, order_B, weights_B.index_select(0, order_B.roll(1)))
    return weights_B


def choice_confidence(logits_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return (B,): softmax probability of the ground truth, for multiple choice and single-label classes."""
    return torch.softmax(logits_BC.float(), dim=1).gather(1, label_B[:, None]).squeeze(1)


def soft_label_confidence(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return (B,): c = sum_a score(a) p(a) / sum_a score(a) with p the sigmoid; 0 for an item without any answer."""
    probability = torch.sigmoid(logits_BK.float())
    total = scores_BK.sum(1)
    return (scores_BK * probability).sum(1) / torch.where(total > 0, total, torch.ones_like(total))


def min_max_scale(values_NW: torch.Tensor, mask_NW: torch.Tensor) -> torch.Tensor:
    """Scale the valid values of each row to [0, 1]; rows with equal values and invalid entries become 0."""
    lowest = values_NW.masked_fill(~mask_NW, torch.inf).amin(1, keepdim=True)
    highest = values_NW.masked_fill(~mask_NW, -torch.inf).amax(1, keepdim=True)
    span = highest - lowest
    scaled = (values_NW - lowest) / torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(mask_NW & (span > 0), scaled, torch.zeros_like(scaled))


def select_words(
    kind: Selection,
    *,
    mask_NW: torch.Tensor,
    prior_NW: torch.Tensor,
    relevance_NW: torch.Tensor | None,
    alpha: float = PRIOR_SHARE,
    rho: float = KEPT_SHARE,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return (N, W) bool: the words to distil.

    Args:
        kind: `adaptive` mixes prior and visual relevance, `prior` uses only the prior, `random` draws the same number
            of words, `all` keeps every word.
        mask_NW: bool, the words that exist on both sides of the alignment.
        prior_NW: IDF prior, 0 for function words.
        relevance_NW: visual relevance; None if neither an aligned teacher nor attention provides one, which sets
            alpha to 1.
        alpha: share of the prior.
        rho: share of the words to keep, rounded up; at least one word of a row that has any.
        generator: for `random`.
    """
    if kind == "all":
        return mask_NW
    prior = min_max_scale(prior_NW, mask_NW)
    if kind == "random":
        score = torch.rand(mask_NW.shape, generator=generator).to(mask_NW.device, non_blocking=True)
    elif relevance_NW is None or kind == "prior":
        score = prior
    else:
        score = alpha * prior + (1.0 - alpha) * min_max_scale(relevance_NW, mask_NW)
    num_kept = torch.ceil(rho * mask_NW.sum(1) - ROUNDING).long()
    # A stable sort keeps the earlier word on a tie, independent of the padding.
    order = score.masked_fill(~mask_NW, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return mask_NW & (rank < num_kept[:, None])
