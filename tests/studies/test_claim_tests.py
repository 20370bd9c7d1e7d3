"""One test of a claim: what supports it, what rules a gain out, and what it says when it is open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from advl_pipeline.evaluation.statistics import Interval
from advl_pipeline.studies.claims import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    ClaimTest,
    claim_test,
    decide,
    margin_p,
    why_open,
)


def a_test(per_seed: list[float], *, low: float = -50.0, high: float = 50.0) -> ClaimTest:
    return claim_test("x", per_seed, Interval(low=low, high=high))


def decided(test: ClaimTest) -> ClaimTest:
    (found,) = decide([replace(test, p_adjusted=test.p_value)], margin=1.0, min_seeds=5)
    return found


def test_ruling_a_gain_out_is_the_one_sided_test() -> None:
    for per_seed in ([0.0, 0.3, -0.2, 0.5, 0.1], [2.0, 2.3, 1.8, 2.5, 2.1]):
        expected = stats.ttest_1samp(per_seed, 1.0, alternative="less").pvalue
        assert margin_p(a_test(per_seed), 1.0) == pytest.approx(expected)
    assert margin_p(a_test([0.5], high=0.6), 1.0) is None


@pytest.mark.parametrize(
    ("constant", "low", "high", "outcome"),
    [
        (0.0, 0.0, 0.0, NOT_SUPPORTED),
        (0.4, -0.2, 0.9, NOT_SUPPORTED),
        (0.4, -1.0, 1.8, UNDECIDED),
        (1.0, 0.9, 1.1, UNDECIDED),
        (3.0, 2.0, 4.0, UNDECIDED),
    ],
)
def test_the_same_number_from_every_seed_is_as_sure_as_its_items(
    constant: float, low: float, high: float, outcome: str
) -> None:
    found = decided(a_test([constant] * 5, low=low, high=high))
    assert found.p_value is None
    assert found.outcome == outcome
    assert "no spread between seeds, so there is no test" in why_open(found, min_seeds=5)


def test_seeds_that_agree_need_items_that_do() -> None:
    per_seed = [2.0, 2.3, 1.8, 2.5, 2.1]
    assert decided(a_test(per_seed, low=0.2)).outcome == SUPPORTED
    found = decided(a_test(per_seed, low=-0.2))
    assert found.outcome == UNDECIDED
    assert "includes 0" in why_open(found, min_seeds=5)
