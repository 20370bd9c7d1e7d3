"""Paired statistics: is one student really better than another, and by how much?

Shapes: S seeds, N test items, K shot sizes, B resamples, C candidates or classes. `difference_SN[s, n]` is the score
of one method minus the score of another on item n, both trained with seed s; scores are in [0, 1]. Test items are the
same for every seed (a crossed design), so seeds and items are resampled independently of each other. Items on one
picture are resampled together.

Everything the module returns is in *points* (percentage points of accuracy) unless its name says
`relative_percent`; the two are never added, averaged or compared.

Numbers that are not one accuracy on one test set are sums of `Contribution`s. A gain averaged over shot sizes, the
slope of a gain, the use of pictures, and the difference of any of these between two methods are all means over items
of a combination of scores. A drop to a set of other questions is the sum of two such means, over two sets of items.
So one bootstrap serves them all: items are resampled together with their picture, separately for each set, and seeds
once for all sets.

Sources: sign-flip permutation tests (Fisher 1935; Good, "Permutation Tests", 2000), percentile bootstrap (Efron and
Tibshirani 1993), step-down correction (Holm 1979), p of a sampled permutation test (Phipson and Smyth 2010).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # Its `stats` are imported when they are first used.

from advl_pipeline.runs.evaluations import Interval

FloatArray = npt.NDArray[np.float64]

EXACT_UP_TO = 14
"""Largest number of nonzero differences for which a sign-flip test enumerates all sign patterns (16,384)."""

_FEW_DISTINCT = 512
_RESAMPLES_AT_ONCE = 250
_GRAIN = 1e-6
"""Differences closer than this count as equal, since item scores are stored as float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemGroups:
    """Groups of dependent items (`group_N`, such as questions on one picture) and item types (`stratum_N`).

    Both are int64 and numbered from 0 without gaps.
    """

    group_N: npt.NDArray[np.int64]
    stratum_N: npt.NDArray[np.int64]

    def subset(self, rows_n: npt.NDArray[np.int64]) -> ItemGroups:
        """Return the groups of the given items, in the order of their rows."""
        _, group_n = np.unique(self.group_N[rows_n], return_inverse=True)
        _, stratum_n = np.unique(self.stratum_N[rows_n], return_inverse=True)
        return ItemGroups(group_N=group_n.astype(np.int64), stratum_N=stratum_n.astype(np.int64))


def item_groups(groups: Sequence[str], strata: Sequence[str], *, max_strata: int = 16) -> ItemGroups:
    """Number groups and strata by name.

    More than `max_strata` types, such as VQA's 65, are not held fixed, since a resample would lack most of them.
    """
    _, group_N = np.unique(np.asarray(groups), return_inverse=True)
    _, stratum_N = np.unique(np.asarray(strata), return_inverse=True)
    if stratum_N.max(initial=0) >= max_strata:
        stratum_N = np.zeros_like(stratum_N)
    return ItemGroups(group_N=group_N.astype(np.int64), stratum_N=stratum_N.astype(np.int64))


def relative_percent(points: float, baseline: float) -> float | None:
    """Return a change in points as percent of an accuracy; None if the accuracy is 0."""
    return 100.0 * points / baseline if baseline else None


def summarise(values: Sequence[float]) -> tuple[float, float | None, Interval | None]:
    """Return the mean, sample standard deviation and 95 % t interval of the mean of values in points.

    A single value has neither deviation nor interval.

    Raises:
        ValueError: there are no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("the mean of no values is undefined")
    mean = float(array.mean())
    if array.size == 1:
        return mean, None, None
    deviation = float(array.std(ddof=1))
    half = float(scipy.stats.t.ppf(0.975, array.size - 1)) * deviation / float(np.sqrt(array.size))
    return mean, deviation, Interval(low=mean - half, high=mean + half)


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's paired t-test of differences, one per seed.

    It is None if the test is undefined: fewer than two seeds, or no spread between them.
    """
    array = np.asarray(differences, dtype=np.float64)
    if array.size < 2 or float(np.ptp(array)) <= _GRAIN:
        return None
    return float(scipy.stats.ttest_1samp(array, 0.0).pvalue)


def sign_flip_test(differences: Sequence[float] | FloatArray, *, resamples: int = 9999) -> float:
    """Return the two-sided p-value of a permutation test: under "no difference" both signs are equally likely.

    Differences of zero carry no information. With at most `EXACT_UP_TO` others, all sign patterns are enumerated.
    Otherwise sums are sampled: differences of equal magnitude matter only by the number of positive ones, which is
    binomial, so a draw costs one number per distinct magnitude instead of one per item. If none of `resamples` sums
    is as large as the observed one, ten times as many are drawn, since a table corrects p for its many rows.
    """
    array = np.asarray(differences, dtype=np.float64)
    informative = array[np.abs(array) > _GRAIN]
    observed = abs(float(informative.sum()))
    slack = _GRAIN * max(1, informative.size)
    if informative.size <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=informative.size)))
        sums = np.abs(signs @ np.abs(informative)) if informative.size else np.zeros(1)
        return float(np.mean(sums >= observed - slack))
    magnitudes, counts = np.unique(np.round(np.abs(informative) / _GRAIN) * _GRAIN, return_counts=True)
    random = np.random.default_rng(0)

    def num_extreme(num_draws: int) -> int:
        sums = np.zeros(num_draws)
        for magnitude, count in zip(magnitudes, counts, strict=True):
            sums += magnitude * (2.0 * random.binomial(int(count), 0.5, size=num_draws) - count)
        return int(np.count_nonzero(np.abs(sums) >= observed - slack))

    extreme = num_extreme(resamples)
    if extreme == 0:
        resamples = 10 * (resamples + 1) - 1
        extreme = num_extreme(resamples)
    return (extreme + 1) / (resamples + 1)


def accuracy_interval(score_N: npt.NDArray[np.floating], pictures: Sequence[str], strata: Sequence[str]) -> Interval:
    """Return the 95 % interval of an accuracy, in percent; items on one picture are drawn together.

    If all items have the same score, resamples have no spread, so it is Wilson's interval over pictures (JASA 1927).

    Raises:
        ValueError: there are no items.
    """
    scores_N = np.asarray(score_N, dtype=np.float64)
    if scores_N.size and np.ptp(scores_N) <= _GRAIN:
        num_pictures = len(set(pictures))
        num_right = round(num_pictures * float(scores_N.mean()))
        wilson = scipy.stats.binomtest(num_right, num_pictures).proportion_ci(method="wilson")
        return Interval(low=100.0 * float(wilson.low), high=100.0 * float(wilson.high))
    whole = Contribution(values_SN=scores_N[None], groups=item_groups(pictures, strata))
    return joint_interval([whole], resamples=1000, resample_seeds=False)


def resampled_means(
    difference_SN: FloatArray, *, groups: ItemGroups | None, resamples: int, random: np.random.Generator
) -> FloatArray:
    """Return (B, S) the mean difference of each seed over each of B resamples of the items.

    Items of one group, such as the questions on one picture, are drawn together, since they are not independent. With
    strata, each resample's means per stratum are weighted by the strata's true shares (post-stratification), so that
    a resample does not gain from containing more questions of an easy type. Groups with the same content are
    exchangeable, so their multiplicities are drawn together.

    Args:
        groups: groups of dependent items; None for independent items.

    Raises:
        ValueError: there are no items or no seeds.
    """
    num_seeds, num_items = difference_SN.shape
    if num_seeds == 0 or num_items == 0:
        raise ValueError("a bootstrap needs at least one seed and one item")
    content_GF, share_H = _group_content(difference_SN, groups)
    distinct_UF, counts_U = np.unique(content_GF, axis=0, return_counts=True)
    draws = (
        _draw_groups(counts_U, min(_RESAMPLES_AT_ONCE, resamples - start), random) @ distinct_UF
        for start in range(0, resamples, _RESAMPLES_AT_ONCE)
    )
    content_BF = np.concatenate(list(draws)).reshape(resamples, 1 + num_seeds, len(share_H))
    size_BH, sum_BSH = content_BF[:, 0], content_BF[:, 1:] * _GRAIN
    # A stratum missing from a resample is left out, and the shares of the others grow.
    weight_BH = share_H * (size_BH > 0)
    weight_BH /= weight_BH.sum(axis=1, keepdims=True)
    means_BS: FloatArray = np.einsum("bsh,bh->bs", sum_BSH, weight_BH / np.maximum(size_BH, 1))
    return means_BS


def interval_of_resamples(means_BS: FloatArray, *, random: np.random.Generator | None) -> Interval:
    """Return the 95 % percentile interval, in points, of the mean over seeds; `random` resamples the seeds too."""
    resamples, num_seeds = means_BS.shape
    if random is not None:
        weights_BS = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples)
        means_B = (means_BS * weights_BS).sum(axis=1) / num_seeds
    else:
        means_B = means_BS.mean(axis=1)
    low, high = np.quantile(100.0 * means_B, [0.025, 0.975])
    return Interval(low=float(low), high=float(high))


def _group_content(difference_SN: FloatArray, groups: ItemGroups | None) -> tuple[FloatArray, FloatArray]:
    """Return (G, (1 + S) * H), each group's item counts per stratum, then sums of differences, and stratum shares."""
    num_items = difference_SN.shape[1]
    group_N = np.arange(num_items) if groups is None else groups.group_N
    stratum_N = np.zeros(num_items, dtype=np.int64) if groups is None else groups.stratum_N
    num_groups, num_strata = int(group_N.max()) + 1, int(stratum_N.max()) + 1
    rows_SN = np.vstack([np.ones(num_items), np.round(difference_SN / _GRAIN)])
    cell_N = group_N * num_strata + stratum_N
    summed = [np.bincount(cell_N, weights=row, minlength=num_groups * num_strata) for row in rows_SN]
    content_GRH = np.stack(summed).reshape(len(summed), num_groups, num_strata).transpose(1, 0, 2)
    content_GF: FloatArray = content_GRH.reshape(num_groups, -1).astype(np.float64)
    share_H: FloatArray = np.bincount(stratum_N, minlength=num_strata) / num_items
    return content_GF, share_H


def _draw_groups(counts_U: npt.NDArray[np.int64], resamples: int, random: np.random.Generator) -> FloatArray:
    """Draw as many groups as there are, with replacement; return (B, U) counts of each distinct group."""
    num_groups = int(counts_U.sum())
    if len(counts_U) <= _FEW_DISTINCT:
        few_BU: FloatArray = random.multinomial(num_groups, counts_U / num_groups, size=resamples).astype(np.float64)
        return few_BU
    place_G = np.repeat(np.arange(len(counts_U)), counts_U)
    drawn_BG = place_G[random.integers(num_groups, size=(resamples, num_groups))]
    cells = drawn_BG + len(counts_U) * np.arange(resamples)[:, None]
    many_BU = np.bincount(cells.ravel(), minlength=resamples * len(counts_U))
    return many_BU.reshape(resamples, len(counts_U)).astype(np.float64)


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return p-values adjusted by Holm's step-down correction, in the order given; missing tests stay None."""
    present = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(present):
        running = max(running, min(1.0, p * (len(present) - rank)))
        adjusted[index] = running
    return tuple(adjusted)


def slope_per_doubling(shots_K: Sequence[float], gain_SK: FloatArray) -> FloatArray:
    """Return (S,) the least-squares slope per seed of a gain, in points per doubling of the shots.

    Raises:
        ValueError: fewer than two distinct shot sizes.
    """
    doublings_K = np.log2(np.asarray(shots_K, dtype=np.float64))
    centred_K = doublings_K - doublings_K.mean()
    weight = float((centred_K**2).sum())
    if weight == 0.0:
        raise ValueError("a slope needs two different shot sizes")
    slopes_S: FloatArray = (gain_SK - gain_SK.mean(axis=1, keepdims=True)) @ centred_K / weight
    return slopes_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The difference between two methods, `mean` and `per_seed` in points, and its tests.

    `p_seed` is from the paired t-test over seeds (None if undefined) and `p_sign_flip` from their sign-flip test.
    `p_item` is from the sign-flip test over items of the difference averaged over seeds; items of one group are
    flipped together. It and `item_interval` take these seeds as given; `joint_interval` covers another draw of both
    seeds and items.
    """

    mean: float
    relative_percent: float | None
    per_seed: tuple[float, ...]
    p_seed: float | None
    p_sign_flip: float
    p_item: float
    item_interval: Interval
    joint_interval: Interval


def compare(
    treated_SN: FloatArray, baseline_SN: FloatArray, *, groups: ItemGroups | None = None, resamples: int = 2000
) -> Comparison:
    """Compare two methods by their item scores in [0, 1]; row s of both was trained with the same seed.

    Args:
        groups: groups of dependent items; None for independent items.

    Raises:
        ValueError: the two were not scored on the same seeds and items.
    """
    if treated_SN.shape != baseline_SN.shape:
        raise ValueError(f"scores of shape {treated_SN.shape} and {baseline_SN.shape} are not paired")
    difference_SN = np.asarray(treated_SN, dtype=np.float64) - np.asarray(baseline_SN, dtype=np.float64)
    per_seed_S, mean_N = 100.0 * difference_SN.mean(axis=1), difference_SN.mean(axis=0)
    sum_G: FloatArray = mean_N if groups is None else np.bincount(groups.group_N, mean_N).astype(np.float64)
    per_seed = tuple(float(value) for value in per_seed_S)
    random = np.random.default_rng(0)
    means_BS = resampled_means(difference_SN, groups=groups, resamples=resamples, random=random)
    treated, baseline = 100.0 * float(np.mean(treated_SN)), 100.0 * float(np.mean(baseline_SN))
    return Comparison(
        mean=treated - baseline,
        relative_percent=relative_percent(treated - baseline, baseline),
        per_seed=per_seed,
        p_seed=paired_t_test(per_seed),
        p_sign_flip=sign_flip_test(per_seed_S),
        p_item=sign_flip_test(sum_G),
        item_interval=interval_of_resamples(means_BS, random=None),
        joint_interval=interval_of_resamples(means_BS, random=random),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """The term of each item of a set in a combination of scores in [0, 1], and the groups of dependent items."""

    values_SN: FloatArray
    groups: ItemGroups | None


def lost_in_part(
    whole: Contribution, part: Contribution, whole_n: npt.NDArray[np.int64], part_n: npt.NDArray[np.int64]
) -> tuple[Contribution, ...]:
    """Return the loss from a whole to its part as disjoint sets: items in both, and items in only one of them.

    With N items in the whole, including all n of the part, whole - part is (1 - n / N) (rest - part). If both are
    samples, each may contain questions that the other does not.

    Args:
        whole_n: positions in the whole of the questions in both.
        part_n: positions of the same questions in the part.
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
    return tuple(float(value) for value in 100.0 * sum(contribution.values_SN.mean(axis=1) for contribution in sets))


def joint_interval(sets: Sequence[Contribution], *, resamples: int = 2000, resample_seeds: bool = True) -> Interval:
    """Return the percentile bootstrap interval, in points, of the sum over sets of the mean over items.

    With S seeds, the variance contributed by seeds is understated by a factor of (S - 1) / S, as in any bootstrap of
    S values. The t interval over seeds (`summarise`) does not have this flaw, and a verdict requires both.

    Args:
        sets: disjoint sets of items, over the same seeds.
        resample_seeds: whether seeds are resampled too.

    Raises:
        ValueError: there are no sets, items or seeds.
    """
    if not sets:
        raise ValueError("a bootstrap needs at least one set of items")
    random = np.random.default_rng(0)
    means_BS = sum(
        (
            resampled_means(contribution.values_SN, groups=contribution.groups, resamples=resamples, random=random)
            for contribution in sets
        ),
        start=np.zeros(()),
    )
    return interval_of_resamples(means_BS, random=random if resample_seeds else None)
