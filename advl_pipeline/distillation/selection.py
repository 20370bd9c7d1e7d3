"""Adaptive Text Token Selection: which words of a sequence are distilled.

The paper fixes that there is an adaptive selection at the level of the token. The scores are our reading
(docs/method.md): s_j = alpha * prior_j + (1 - alpha) * vis_j, both min-max scaled inside the instance; kept are the
top ceil(rho * W) words.
Shapes: N sequences, W words.
"""

from __future__ import annotations

import torch

from advl_pipeline.datasets.words import ROUNDING
from advl_pipeline.distillation.settings import Selection


def min_max_scale(values_NW: torch.Tensor, mask_NW: torch.Tensor) -> torch.Tensor:
    """Scale the valid values of each row to [0, 1]; a row whose values are all equal becomes 0; others are 0."""
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
    alpha: float,
    rho: float,
    generator: torch.Generator | None = None,
    counted_NW: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (N, W) bool: the words that are distilled.

    Args:
        kind: `adaptive` mixes prior and visual relevance, `prior` uses the prior alone, `random` draws as many
            words, `all` keeps every word.
        mask_NW: bool, the words that exist on both sides of the alignment.
        prior_NW: IDF prior, 0 for function words.
        relevance_NW: visual relevance; None where neither an aligned teacher nor attention gives one, in which case
            alpha is 1.
        alpha: share of the prior.
        rho: share of the words kept, rounded up; at least one word of a row that has any.
        generator: of `random`.
        counted_NW: bool, the words that `rho` is a share of, where the cache holds only some of them [default:
            `mask_NW`].
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
    return _top_share(score, mask_NW, mask_NW if counted_NW is None else counted_NW, rho)


def _top_share(score_NW: torch.Tensor, mask_NW: torch.Tensor, counted_NW: torch.Tensor, rho: float) -> torch.Tensor:
    num_kept = torch.ceil(rho * counted_NW.sum(1) - ROUNDING).long()
    # A stable sort keeps the earlier word on a tie, whatever the padding behind it.
    order = score_NW.masked_fill(~mask_NW, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return mask_NW & (rank < num_kept[:, None])
