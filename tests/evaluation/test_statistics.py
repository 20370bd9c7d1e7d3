"""Paired statistics against brute force, against scipy, under the null, and over combinations of scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from advl_pipeline.evaluation import statistics as s

finite = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 3))
scores = st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0])


def bootstrap(
    values_SN: np.ndarray, *, groups: s.ItemGroups | None = None, resamples: int = 4000, resample_seeds: bool = True
) -> s.Interval:
    contribution = s.Contribution(values_SN=values_SN, groups=groups)
    return s.joint_interval([contribution], resamples=resamples, resample_seeds=resample_seeds)


@settings(max_examples=40)
@given(st.lists(finite, min_size=2, max_size=9))
def test_exact_sign_flip_equals_scipy(differences: list[float]) -> None:
    expected = stats.permutation_test(
        (np.array(differences),), lambda x, axis: x.mean(axis=axis), permutation_type="samples", vectorized=True
    )
    assert s.sign_flip_test(differences) == pytest.approx(expected.pvalue)
    assert s.sign_flip_test(differences[:1]) == 1.0


@pytest.mark.parametrize("wins", [30, 36, 42])
def test_sampled_sign_flip_of_right_and_wrong_is_mcnemar(wins: int) -> None:
    differences = np.array([1.0] * wins + [-1.0] * (60 - wins) + [0.0] * 500)
    expected = stats.binomtest(wins, 60, 0.5).pvalue
    assert s.sign_flip_test(differences, resamples=40_000) == pytest.approx(expected, abs=0.01)


def test_a_p_value_at_the_floor_is_asked_of_more_draws() -> None:
    assert s.sign_flip_test(np.array([1.0] * 60), resamples=99) == 1 / 1000
    for wins in range(31, 38):
        in_hundredths = 100 * s.sign_flip_test(np.array([1.0] * wins + [-1.0] * (60 - wins)), resamples=99)
        assert in_hundredths > 1
        assert in_hundredths == pytest.approx(round(in_hundredths), abs=1e-9), "of 99 draws, and no more"


def test_sign_flip_is_calibrated_under_the_null() -> None:
    random = np.random.default_rng(11)
    p_values = [
        s.sign_flip_test(random.choice([-1.0, 0.0, 1.0], size=80, p=[0.2, 0.6, 0.2]), resamples=999)
        for _ in range(600)
    ]
    rejected = np.mean(np.array(p_values) <= 0.05)
    assert 0.02 <= rejected <= 0.07


def test_paired_t_equals_scipy_and_declines_without_spread() -> None:
    values = [0.4, 1.7, 2.2, 0.9, 1.1]
    result = s.paired_t_test(values)
    assert result == pytest.approx(stats.ttest_rel(values, np.zeros(5)).pvalue)
    assert s.paired_t_test([1.0]) is None
    assert s.paired_t_test([2.0, 2.0, 2.0]) is None


def test_summary_is_the_textbook_t_interval() -> None:
    _, _, interval = s.summarise([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert s.summarise([3.0]) == (3.0, None, None)
    with pytest.raises(ValueError, match="undefined"):
        s.summarise([])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 120))
@example(1243, 20)
def test_item_bootstrap_agrees_with_scipy(seed: int, count: int) -> None:
    difference_N = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], size=count)
    ours = bootstrap(difference_N[None], resamples=4000, resample_seeds=False)
    theirs = stats.bootstrap(
        (difference_N,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    # Means of resamples lie on a grid of one item's step, and two draws of them may end on neighbouring points.
    tolerance = 100 * max(0.35 * float(stats.sem(difference_N)), 1 / count) + 1e-9
    assert ours.low == pytest.approx(100 * theirs.low, abs=tolerance)
    assert ours.high == pytest.approx(100 * theirs.high, abs=tolerance)


def test_joint_bootstrap_equals_naive_resampling() -> None:
    random = np.random.default_rng(2)
    difference_SN = random.choice([-1.0, 0.0, 1.0], size=(5, 60)) + random.choice([0.0, 1.0], size=(5, 1))
    draws = []
    for _ in range(4000):
        seeds, items = random.integers(5, size=5), random.integers(60, size=60)
        draws.append(100 * difference_SN[np.ix_(seeds, items)].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    ours = bootstrap(difference_SN, resamples=4000)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=2.5)
    assert ours.high - ours.low > 1.3 * (
        bootstrap(difference_SN, resample_seeds=False).high - bootstrap(difference_SN, resample_seeds=False).low
    )


def test_grouped_bootstrap_equals_naive_resampling_of_pictures() -> None:
    random = np.random.default_rng(5)
    names = np.repeat([f"picture {index}" for index in range(40)], random.integers(1, 6, size=40))
    strata = random.choice(["why", "what"], size=len(names), p=[0.3, 0.7])
    difference_SN = (
        random.choice([-1.0, 0.0, 1.0], size=(3, len(names)))
        + np.repeat(random.normal(size=40), np.unique(names, return_counts=True)[1])
        + (strata == "why") * 2.0
    )
    rows_of = {name: np.flatnonzero(names == name) for name in np.unique(names)}
    share = {name: float(np.mean(strata == name)) for name in ("why", "what")}
    draws = []
    for _ in range(3000):
        seeds = random.integers(3, size=3)
        rows = np.concatenate([rows_of[name] for name in random.choice(list(rows_of), size=len(rows_of))])
        means = {name: difference_SN[seeds][:, rows[strata[rows] == name]].mean() for name in share}
        draws.append(100 * sum(share[name] * means[name] for name in share))
    low, high = np.quantile(draws, [0.025, 0.975])
    groups = s.item_groups(names.tolist(), strata.tolist())
    ours = bootstrap(difference_SN, groups=groups, resamples=3000)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert ours.contains(100 * difference_SN.mean())


def test_repeated_questions_on_a_picture_add_no_certainty() -> None:
    random = np.random.default_rng(6)
    pictures_SG = random.choice([-1.0, 0.0, 1.0], size=(1, 80), p=[0.2, 0.4, 0.4])
    difference_SN = np.repeat(pictures_SG, 9, axis=1)
    groups = s.item_groups([str(index) for index in np.repeat(np.arange(80), 9)], [""] * 720)
    once, apart, together = (
        s.compare(difference, np.zeros_like(difference), groups=grouped)
        for difference, grouped in ((pictures_SG, None), (difference_SN, None), (difference_SN, groups))
    )
    assert together.p_item == once.p_item
    ends = [(item.item_interval.low, item.item_interval.high) for item in (together, once, apart)]
    assert ends[0] == pytest.approx(ends[1])
    assert ends[2][1] - ends[2][0] == pytest.approx((ends[1][1] - ends[1][0]) / 3, rel=0.15)


def test_shares_of_question_types_are_held_fixed_unless_there_are_too_many() -> None:
    strata = ["easy", "hard"] * 50
    difference_SN = np.array([[1.0, 0.0] * 50])
    names = [str(index) for index in range(100)]
    fixed = bootstrap(difference_SN, groups=s.item_groups(names, strata))
    assert (fixed.low, fixed.high) == pytest.approx((50.0, 50.0))
    free = bootstrap(difference_SN, groups=s.item_groups(names, strata, max_strata=1))
    assert free.high - free.low > 10


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_an_accuracy_without_spread_has_the_interval_of_its_number_of_pictures(right: float) -> None:
    interval = s.accuracy_interval(np.full(20, right), [str(item // 2) for item in range(20)], ["a", "b"] * 10)
    far = 100 * 1.959964**2 / (10 + 1.959964**2)
    expected = (100 - far, 100) if right else (0, far)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-4)
    soft = s.accuracy_interval(np.full(20, 0.3, dtype=np.float32), [str(item) for item in range(20)], ["a"] * 20)
    assert 10 < soft.low < 30 < soft.high < 60
    some = s.accuracy_interval(np.array([right, 1 - right] * 10), [str(item) for item in range(20)], ["a"] * 20)
    assert 20 < some.low < 50 < some.high < 80


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_ordered_bounded_and_never_smaller(p_values: list[float]) -> None:
    adjusted = [value for value in s.holm(p_values) if value is not None]
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(adjusted[a] <= adjusted[b] + 1e-12 for a, b in itertools.pairwise(order))
    assert min(adjusted) == pytest.approx(min(1.0, min(p_values) * len(p_values)))


def test_holm_of_a_worked_example_leaves_out_tests_that_do_not_exist() -> None:
    assert s.holm([0.01, None, 0.04, 0.03]) == (pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06))


def test_slope_recovers_a_line_per_seed() -> None:
    shots = [50, 100, 200, 400]
    gains = np.array([[8.0, 6.0, 4.0, 2.0], [1.0, 1.5, 2.0, 2.5]])
    assert s.slope_per_doubling(shots, gains) == pytest.approx([-2.0, 0.5])
    with pytest.raises(ValueError, match="two different"):
        s.slope_per_doubling([100, 100], gains[:, :2])


def test_points_and_relative_percent_are_kept_apart() -> None:
    change = s.compare(np.array([[1.0, 1.0, 1.0, 0.0]]), np.array([[1.0, 1.0, 0.0, 0.0]]), resamples=10)
    assert (change.mean, change.relative_percent) == pytest.approx((25.0, 50.0))
    assert s.relative_percent(5.0, 0.0) is None


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_comparison_is_antisymmetric(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12)))
    draw = st.lists(scores, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    treated = np.array(data.draw(draw)).reshape(shape)
    baseline = np.array(data.draw(draw)).reshape(shape)
    forth, back = s.compare(treated, baseline, resamples=200), s.compare(baseline, treated, resamples=200)
    assert forth.mean == pytest.approx(-back.mean, abs=1e-9)
    assert forth.mean == pytest.approx(np.mean(forth.per_seed), abs=1e-9)
    assert (forth.p_item, forth.p_sign_flip) == pytest.approx((back.p_item, back.p_sign_flip))


def test_unpaired_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        s.compare(np.zeros((2, 3)), np.zeros((2, 4)))


# Combinations of scores over sets of items.


def pictures(sizes: np.ndarray) -> tuple[np.ndarray, s.ItemGroups]:
    names = np.repeat([f"picture {index}" for index in range(len(sizes))], sizes)
    return names, s.item_groups(names.tolist(), [""] * len(names))


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000))
def test_two_sets_are_resampled_by_pictures_each_by_itself_and_seeds_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    loop, sets = [], []
    for count, mean in ((30, 0.2), (45, -0.1)):
        names, groups = pictures(random.integers(1, 4, size=count))
        values_SN = random.normal(mean, 0.4, size=(4, len(names))) + random.normal(0, 0.1, size=(4, 1))
        sets.append(s.Contribution(values_SN=values_SN, groups=groups))
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
    ours = s.joint_interval(sets)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.12 * (high - low))
    assert ours.contains(float(np.mean(s.mean_per_seed(sets))))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_part_is_taken_from_the_whole_over_disjoint_items(seed: int) -> None:
    """Nested, overlapping or samples that hold each other only in part: the means differ by what they differ."""
    random = np.random.default_rng(seed)
    num_whole, num_part = random.integers(2, 40, size=2)
    num_both = int(random.integers(0, min(num_whole, num_part) + 1))
    whole_n, part_n = (random.permutation(count)[:num_both] for count in (num_whole, num_part))
    whole, part = (
        s.Contribution(values_SN=random.random((3, count)), groups=pictures(np.ones(count, int))[1])
        for count in (num_whole, num_part)
    )
    sets = s.lost_in_part(whole, part, whole_n, part_n)
    expected = 100 * (whole.values_SN.mean(1) - part.values_SN.mean(1))
    assert s.mean_per_seed(sets) == pytest.approx(expected, abs=1e-9)
    assert sum(contribution.values_SN.shape[1] for contribution in sets) == num_whole + num_part - num_both
    s.joint_interval(sets, resamples=10)


def test_a_part_of_a_whole_varies_less_than_two_sets_of_their_own() -> None:
    values = np.random.default_rng(1).integers(0, 2, size=(1, 900)).astype(np.float64)
    whole, part = (
        s.Contribution(values_SN=values, groups=None),
        s.Contribution(values_SN=values[:, :600], groups=None),
    )
    rows = np.arange(600)
    nested = s.joint_interval(s.lost_in_part(whole, part, rows, rows))
    apart = s.joint_interval([whole, s.Contribution(values_SN=-part.values_SN, groups=None)])
    # (1 - n / N) (rest - part), against whole - part as if they had no item in common.
    expected = (1 - 600 / 900) * np.sqrt(1 / 300 + 1 / 600) / np.sqrt(1 / 900 + 1 / 600)
    assert (nested.high - nested.low) / (apart.high - apart.low) == pytest.approx(expected, rel=0.1)


def test_one_set_is_what_compare_says() -> None:
    random = np.random.default_rng(4)
    treated, baseline = random.integers(0, 2, size=(2, 5, 90)).astype(np.float64)
    _, groups = pictures(np.full(30, 3))
    ours = s.joint_interval([s.Contribution(values_SN=treated - baseline, groups=groups)])
    assert ours == s.compare(treated, baseline, groups=groups).joint_interval


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="one set"):
        s.joint_interval([])
    with pytest.raises(ValueError, match="one item"):
        s.joint_interval([s.Contribution(values_SN=np.zeros((2, 0)), groups=None)])


def test_groups_of_some_items_are_numbered_without_gaps() -> None:
    groups = s.item_groups(["a", "b", "b", "c", "d"], ["x", "y", "y", "x", "z"]).subset(np.array([4, 1, 2]))
    assert groups.group_N.tolist() == [1, 0, 0]
    assert groups.stratum_N.tolist() == [1, 0, 0]
