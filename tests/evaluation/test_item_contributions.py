"""The bootstrap over seeds and items of combinations of scores, against plain loops and known cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.evaluation.statistics import (
    Contribution,
    ItemGroups,
    compare,
    item_groups,
    joint_interval,
    lost_in_part,
    mean_per_seed,
)


def pictures(sizes: np.ndarray) -> tuple[np.ndarray, ItemGroups]:
    names = np.repeat([f"picture {index}" for index in range(len(sizes))], sizes)
    return names, item_groups(names.tolist(), [""] * len(names))


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000))
def test_two_sets_are_resampled_by_pictures_each_by_itself_and_seeds_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    loop, sets = [], []
    for count, mean in ((30, 0.2), (45, -0.1)):
        names, groups = pictures(random.integers(1, 4, size=count))
        values_SN = random.normal(mean, 0.4, size=(4, len(names))) + random.normal(0, 0.1, size=(4, 1))
        sets.append(Contribution(values_SN=values_SN, groups=groups))
        loop.append((values_SN, [np.flatnonzero(names == name) for name in np.unique(names)]))
    draws = []
    for _ in range(2000):
        seeds = random.integers(4, size=4)
        total = 0.0
        for values_SN, rows in loop:
            drawn = np.concatenate([rows[index] for index in random.integers(len(rows), size=len(rows))])
            total += 100 * values_SN[seeds][:, drawn].mean()
        draws.append(total)
    low, high = np.quantile(draws, [0.025, 0.975])
    ours = joint_interval(sets)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.12 * (high - low))
    assert ours.contains(float(np.mean(mean_per_seed(sets))))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_part_is_taken_from_the_whole_over_disjoint_items(seed: int) -> None:
    """Nested, overlapping or samples that hold each other only in part: the means differ by what they differ."""
    random = np.random.default_rng(seed)
    num_whole, num_part = random.integers(2, 40, size=2)
    num_both = int(random.integers(0, min(num_whole, num_part) + 1))
    whole_n, part_n = (random.permutation(count)[:num_both] for count in (num_whole, num_part))
    whole, part = (
        Contribution(values_SN=random.random((3, count)), groups=pictures(np.ones(count, int))[1])
        for count in (num_whole, num_part)
    )
    sets = lost_in_part(whole, part, whole_n, part_n)
    expected = 100 * (whole.values_SN.mean(1) - part.values_SN.mean(1))
    assert mean_per_seed(sets) == pytest.approx(expected, abs=1e-9)
    assert sum(contribution.values_SN.shape[1] for contribution in sets) == num_whole + num_part - num_both
    joint_interval(sets, resamples=10)


def test_a_part_of_a_whole_varies_less_than_two_sets_of_their_own() -> None:
    values = np.random.default_rng(1).integers(0, 2, size=(1, 900)).astype(np.float64)
    whole, part = Contribution(values_SN=values, groups=None), Contribution(values_SN=values[:, :600], groups=None)
    rows = np.arange(600)
    nested = joint_interval(lost_in_part(whole, part, rows, rows))
    apart = joint_interval([whole, Contribution(values_SN=-part.values_SN, groups=None)])
    # (1 - n / N) (rest - part), against whole - part as if they had no item in common.
    expected = (1 - 600 / 900) * np.sqrt(1 / 300 + 1 / 600) / np.sqrt(1 / 900 + 1 / 600)
    assert (nested.high - nested.low) / (apart.high - apart.low) == pytest.approx(expected, rel=0.1)


def test_one_set_is_what_compare_says() -> None:
    random = np.random.default_rng(4)
    treated, baseline = random.integers(0, 2, size=(2, 5, 90)).astype(np.float64)
    _, groups = pictures(np.full(30, 3))
    ours = joint_interval([Contribution(values_SN=treated - baseline, groups=groups)])
    assert ours == compare(treated, baseline, groups=groups)["joint_interval"]


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="one set"):
        joint_interval([])
    with pytest.raises(ValueError, match="one item"):
        joint_interval([Contribution(values_SN=np.zeros((2, 0)), groups=None)])


def test_groups_of_some_items_are_numbered_without_gaps() -> None:
    groups = item_groups(["a", "b", "b", "c", "d"], ["x", "y", "y", "x", "z"]).subset(np.array([4, 1, 2]))
    assert groups.group_N.tolist() == [1, 0, 0]
    assert groups.stratum_N.tolist() == [1, 0, 0]
