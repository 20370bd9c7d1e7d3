"""What each item adds to a number that is not one accuracy on one test set, and the interval of its mean.

A gain averaged over shot sizes, the slope of a gain, the use of pictures, and what any of them is more than another
method's, are all means over items of a combination of scores. A drop to a set of other questions is the sum of two
such means, over two sets of items. So one bootstrap serves them all: items are resampled together with their picture,
each set by itself, and seeds once for all sets, as in `hierarchical_bootstrap`.

Shapes: S seeds, N items of a set, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advl_pipeline.evaluation.statistics import (
    FloatArray,
    Interval,
    ItemGroups,
    interval_of_resamples,
    resampled_means,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """Of one set of items: what each adds, in combinations of scores in [0, 1], and which belong together."""

    values_SN: FloatArray
    groups: ItemGroups | None


def lost_in_part(
    whole: Contribution, part: Contribution, whole_n: npt.NDArray[np.int64], part_n: npt.NDArray[np.int64]
) -> tuple[Contribution, ...]:
    """Return what a part is below the whole that it is of, as disjoint sets: what both hold, and what only one holds.

    With N items in the whole, all n of the part among them, whole - part is (1 - n / N) (rest - part). Of samples of
    the two, each may hold questions that the other does not.

    Args:
        whole_n: positions in the whole of the questions that both hold.
        part_n: their positions in the part.
    """
    num_whole, num_part, num_both = whole.values_SN.shape[1], part.values_SN.shape[1], len(whole_n)
    rest, more = (np.setdiff1d(np.arange(count), held) for count, held in ((num_whole, whole_n), (num_part, part_n)))
    both_Sn = num_both * (whole.values_SN[:, whole_n] / num_whole - part.values_SN[:, part_n] / num_part)
    sets = (
        (both_Sn, whole.groups, whole_n),
        (whole.values_SN[:, rest] * (len(rest) / num_whole), whole.groups, rest),
        (part.values_SN[:, more] * (-len(more) / num_part), part.groups, more),
    )
    return tuple(
        Contribution(values_SN=values, groups=None if groups is None else groups.subset(held))
        for values, groups, held in sets
        if len(held)
    )


def mean_per_seed(sets: Sequence[Contribution]) -> tuple[float, ...]:
    """Return the sum over sets of the mean over items, in points, one per seed."""
    return tuple(float(value) for value in 100.0 * sum(one.values_SN.mean(axis=1) for one in sets))


def joint_interval(
    sets: Sequence[Contribution], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the interval over seeds and items, in points, of the sum over sets of the mean over items.

    Args:
        sets: disjoint sets of items, over the same seeds.

    Raises:
        ValueError: there is no set, no item or no seed.
    """
    if not sets:
        raise ValueError("a bootstrap needs at least one set of items")
    random = np.random.default_rng(seed)
    means_BS = sum(
        (resampled_means(one.values_SN, groups=one.groups, resamples=resamples, random=random) for one in sets),
        start=np.zeros(()),
    )
    return interval_of_resamples(means_BS, level=level, random=random)
