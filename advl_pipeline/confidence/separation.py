"""Informativeness of a confidence: does the truth of an item outrank its wrong alternatives?

Shapes: N items, C candidates, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Floats = npt.NDArray[np.floating]

LEVEL = 0.95

ADDED = (1.0, 1.0, 0.0, 0.0)
"""Pseudo-observations of the interval: two groups that outrank everything, two that outrank nothing. Agresti and
Coull (1998) add them for proportions; without them a handful of lucky items would be certain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Separation:
    """AUC of right against wrong within items, with its 95 % interval; 0.5 is chance."""

    auc: float
    low: float
    high: float
    num_items: int

    @property
    def is_above_chance(self) -> bool:
        return self.low > 0.5

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:.2f} to {self.high:.2f}"
        return f"AUC {self.auc:.2f} for correct against wrong ({interval}, {self.num_items} items)"


def separation(outranked_N: Floats, groups: Sequence[str]) -> Separation:
    """Return the mean of the items' shares and its Student interval, with items clustered by group.

    The variance is that of Obuchowski (1997) for clustered data, where each item is a separate comparison.

    Args:
        outranked_N: share of wrong alternatives that the truth of an item outranks; NaN for items without any.
        groups: groups of the items, such as their pictures: items of one group are not independent.
    """
    counted_N = ~np.isnan(outranked_N)
    share_n = np.asarray(outranked_N, np.float64)[counted_N]
    if not len(share_n):
        return Separation(auc=0.5, low=0.0, high=1.0, num_items=0)
    names = [name for name, is_counted in zip(groups, counted_N.tolist(), strict=True) if is_counted]
    _, group_n = np.unique(names, return_inverse=True)
    added = np.array(ADDED)
    size_G = np.bincount(group_n).astype(np.float64)
    total_G = np.concatenate([np.bincount(group_n, weights=share_n), added * size_G.mean()])
    size_G = np.concatenate([size_G, np.full(len(added), size_G.mean())])
    middle = total_G.sum() / size_G.sum()
    num_groups = len(size_G)
    variance = num_groups / (num_groups - 1) * ((total_G - middle * size_G) ** 2).sum() / size_G.sum() ** 2
    half = float(stdtrit(num_groups - 1, (1 + LEVEL) / 2)) * np.sqrt(variance)
    return Separation(
        auc=float(share_n.mean()),
        low=max(0.0, float(middle - half)),
        high=min(1.0, float(middle + half)),
        num_items=len(share_n),
    )


def outranked_candidates(
    score_NC: Floats, label_N: npt.NDArray[np.int64], valid_NC: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """Return (N,) float32: the share of the wrong candidates that score below the right one; a tie counts half.

    Args:
        score_NC: score of each candidate.
        label_N: the right candidate.
        valid_NC: False for candidates that an item lacks.
    """
    rival_NC = np.ones(score_NC.shape, bool) if valid_NC is None else valid_NC.copy()
    np.put_along_axis(rival_NC, label_N[:, None], False, axis=1)
    truth_N1 = np.take_along_axis(score_NC, label_N[:, None], axis=1)
    won_NC = np.where(rival_NC, (score_NC < truth_N1) + 0.5 * (score_NC == truth_N1), 0.0)
    count_N = rival_NC.sum(axis=1)
    share_N: npt.NDArray[np.float32] = np.where(
        count_N > 0, won_NC.sum(axis=1) / np.maximum(count_N, 1), np.nan
    ).astype(np.float32)
    return share_N


def outranked_classes(score_NK: Floats, truth_NK: Floats) -> npt.NDArray[np.float32]:
    """Return (N,) float32: the share of wrong classes that the truth outranks, corrected for class frequency.

    A frequent class scores higher than a rare one for every item. So scores are first ranked within their class: the
    comparison is between an item's rank among all items for its right class and for other classes. Several right
    classes are averaged with the weights `truth_NK`; NaN for an item without a right class, or without a wrong one.

    Args:
        score_NK: scores of the items from one head.
        truth_NK: weight of each class in the truth, 0 for wrong classes.
    """
    from scipy.stats import rankdata

    rank_NK = rankdata(score_NK, axis=0)
    share_N = np.full(len(score_NK), np.nan, np.float32)
    for row, (rank_K, truth_K) in enumerate(zip(rank_NK, truth_NK, strict=True)):
        is_right_K = truth_K > 0
        wrong = np.sort(rank_K[~is_right_K])
        if not is_right_K.any() or not len(wrong):
            continue
        right = rank_K[is_right_K]
        below = (np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")) / (2 * len(wrong))
        share_N[row] = np.average(below, weights=truth_K[is_right_K])
    return share_N
