"""Verdicts: each claim can be supported, can fail, and stays open when the study is too small; so can each test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from scipy import stats
from synthetic_runs import GAINS, Spot, made_up_result

from advl_pipeline.runs.evaluations import Interval
from advl_pipeline.studies.claims import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    ClaimTest,
    Verdict,
    claim_test,
    decide,
    judge_claims,
    margin_p,
    why_open,
)
from advl_pipeline.studies.config import PARTS, SHIPPED
from advl_pipeline.studies.result import StudyResult

FULL: dict[str, Any] = {"shots": ["full"], "test_sets": ["test"]}
FEW: dict[str, Any] = {"shots": [100], "test_sets": ["test"]}
SHIFTED: dict[str, Any] = {"shots": [100]}
GREAT = {**GAINS, "advl": 26.0}


def verdicts(result: StudyResult) -> dict[str, Verdict]:
    return {verdict.claim: verdict for verdict in judge_claims(result)}


def judged(
    raw: Mapping[str, Any], gains: Mapping[str, float], missing: Callable[[Spot], bool] = lambda spot: False
) -> dict[str, Verdict]:
    return verdicts(made_up_result(raw, gains=gains, missing=missing))


def test_a_real_gain_at_full_data_is_supported_and_what_a_shuffled_teacher_gives_too_is_not() -> None:
    found = judged(FULL, GREAT)
    assert found["C1"].outcome == SUPPORTED
    assert {test.outcome for test in found["C1"].tests} == {SUPPORTED}
    shared = judged(FULL, {**GREAT, "advl-shuffled": 26.0})["C1"]
    assert shared.outcome != SUPPORTED
    assert shared.tests[0].outcome == SUPPORTED


@pytest.mark.parametrize(("raw", "claims"), [(FULL, ["C1"]), (SHIFTED, ["C3", "C4"])], ids=["full", "few"])
def test_without_a_control_nothing_is_supported(raw: Mapping[str, Any], claims: list[str]) -> None:
    gains = {"advl on test": 26.0, "advl on test-shift": 45.0}
    found = judged({**raw, "methods": ["plain", "advl"]}, gains)
    for claim in claims:
        assert {test.outcome for test in found[claim].tests} == {SUPPORTED}, claim
        assert found[claim].outcome == UNDECIDED
        assert "shuffled or random teacher" in found[claim].reason


@pytest.mark.parametrize("methods", [["plain", "advl", "advl-shuffled"], ["plain", "advl"]])
def test_a_lost_gain_is_lost_with_and_without_a_control(methods: list[str]) -> None:
    verdict = judged({**FULL, "methods": methods, "seeds": list(range(12))}, {"advl": -12.0})["C1"]
    assert verdict.outcome == NOT_SUPPORTED
    assert verdict.reason == "A gain of 1 is ruled out: ADVL against plain at full data, Q→A accuracy."


def test_a_study_claims_nothing_of_what_it_does_not_run() -> None:
    """Of one small size there is no full data and no trend; where no part is left out, parts are not judged."""
    assert set(judged(SHIFTED, {"advl": -12.0})) == {"C3", "C4"}


def test_a_test_that_stands_in_the_table_has_the_number_of_the_table() -> None:
    result = made_up_result({"shots": [100, "full"], "test_sets": ["test"]})
    found = verdicts(result)
    for claim, shots in (("C1", "full"), ("C2", "100")):
        (place,) = (place for place in result.numbers.places() if place.shots == shots)
        gain = result.numbers.gain(place, "advl", "plain")
        assert gain is not None
        (test,) = [item for item in found[claim].tests if item.name.endswith("advl minus plain")]
        assert test.mean == pytest.approx(gain.estimate.mean)
        assert test.p_adjusted == gain.p_seed_holm


def test_shots_by_number_that_are_all_data_stand_for_full_data() -> None:
    found = judged({**FULL, "shots": [1600, "full"]}, GREAT)["C1"]
    assert found.outcome == SUPPORTED
    assert all("full data" in test.name for test in found.tests)


def test_a_trend_that_no_seed_has_whole_is_not_seen() -> None:
    def missing(spot: Spot) -> bool:
        return spot.method == "plain" and (spot.shots == 400) == (spot.seed < 3)

    found = judged({"test_sets": ["test"]}, GREAT, missing)["C2"]
    assert found.outcome == UNDECIDED
    assert found.reason.startswith("No seed has finished every shot size.")


@pytest.mark.parametrize(
    ("gains", "supported"),
    [
        ({"advl on test": 0.0, "advl on test-shift": 30.0}, True),
        ({"advl on test": -30.0, "advl on test-shift": 0.0}, False),
        ({"advl on test": 0.0, "advl on test-shift": 30.0, "advl-shuffled on test-shift": 30.0}, False),
    ],
    ids=["more robust", "only worse", "a control does it too"],
)
def test_robustness_is_a_smaller_drop_to_more_accuracy_that_no_control_gives(
    gains: dict[str, float], supported: bool
) -> None:
    found = judged(SHIFTED, gains)["C3"]
    assert [test.name.partition(": ")[2] for test in found.tests] == [
        "drop of plain minus drop of advl",
        "drop of advl-shuffled minus drop of advl",
        "advl minus plain",
    ]
    assert found.tests[0].outcome == SUPPORTED
    assert (found.outcome == SUPPORTED) == supported


@pytest.mark.parametrize(("of_control", "supported"), [(0.0, True), (30.0, False)])
def test_use_of_pictures_that_a_control_brings_too_is_no_support(of_control: float, supported: bool) -> None:
    found = judged(FEW, {"advl": 30.0, "advl-shuffled": of_control})["C4"]
    assert found.tests[0].outcome == SUPPORTED
    assert (found.outcome == SUPPORTED) == supported


def test_a_control_differs_from_the_focus_in_its_teacher_alone() -> None:
    methods = ["plain", "naive-kd", "advl-shuffled", "advl-no-anchor"]
    raw = {**FULL, "focus": "advl-no-anchor", "methods": methods}
    gains = {**GAINS, "advl-no-anchor": 26.0}
    found = judged(raw, gains)["C1"]
    assert found.outcome == UNDECIDED
    assert "no shuffled or random teacher" in found.reason
    own = {"control": {"method": "advl", "anchor-weight": 0.0, "teacher-control": "shuffle"}}
    found = judged({**raw, "methods": [*methods, "control"], "variants": own}, gains)["C1"]
    assert found.outcome == SUPPORTED


def test_a_control_without_results_at_one_size_supports_nothing() -> None:
    gains = {**GREAT, "advl on test-shift": 45.0}
    raw = {"methods": ["plain", "advl", "advl-shuffled"], "seeds": list(range(6))}
    assert judged(raw, gains)["C3"].outcome == SUPPORTED
    found = judged(raw, gains, lambda spot: (spot.method, spot.shots) == ("advl-shuffled", 400))
    for claim in ("C3", "C4"):
        assert found[claim].outcome == UNDECIDED
        assert "Caution: advl-shuffled is not finished at 400 shots." in found[claim].notes


def test_the_gain_that_grows_is_over_the_baseline_of_the_study() -> None:
    """A focus that the table compares with another method is judged against the baseline all the same."""
    own = {"advl-own": {"method": "advl", "baseline": "naive-kd"}}
    methods = ["plain", "naive-kd", "advl-own", "advl"]
    raw = {"focus": "advl-own", "variants": own, "methods": methods, "test_sets": ["test"]}
    result = made_up_result(raw, gains={"advl-own": 9.0})
    (test,) = [test for test in verdicts(result)["C2"].tests if "minus gain" in test.name]
    (along,) = (trend for trend in result.numbers.trends if trend.method == "advl-own")
    assert along.against == "plain"
    assert test.mean == pytest.approx(along.gains[0].estimate.mean - along.gains[-1].estimate.mean)


def test_changes_are_averaged_seed_by_seed_where_a_run_is_missing() -> None:
    raw = {"methods": ["plain", "advl"], "seeds": list(range(6))}
    result = made_up_result(raw, missing=lambda spot: (spot.method, spot.shots, spot.seed) == ("plain", 100, 1))
    drops = (loss for loss in result.numbers.losses if (loss.quantity, loss.method) == ("drop", "advl"))
    by_size = [loss.change.by_seed for loss in drops if loss.change]
    assert [sorted(values) for values in by_size] == [[0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    expected = [-(by_size[0][seed] + by_size[1][seed]) / 2 for seed in by_size[0]]
    assert verdicts(result)["C3"].tests[0].per_seed == pytest.approx(expected)


def test_one_part_left_out_is_not_every_part() -> None:
    gains = {**GREAT, "naive-kd": 4.0}
    methods = ["plain", "naive-kd", "advl", "advl-shuffled", "advl-no-anchor"]
    few = judged({**FEW, "methods": methods}, gains)["C5"]
    assert {test.outcome for test in few.tests} == {SUPPORTED}
    assert few.outcome == UNDECIDED
    assert "confidence weighting" in few.reason
    parts = [name for name, variant in SHIPPED.items() if variant.part in PARTS]
    assert judged({**FEW, "methods": [*methods, *parts]}, gains)["C5"].outcome == SUPPORTED


def test_the_margin_decides_what_is_ruled_out() -> None:
    result = made_up_result(FULL, gains={**GAINS, "advl": 2.0})
    for margin, outcome in ((0.0, UNDECIDED), (50.0, NOT_SUPPORTED)):
        study = dataclasses.replace(result.study, margin=margin)
        assert verdicts(dataclasses.replace(result, study=study))["C1"].outcome == outcome


def a_test(per_seed: list[float], *, low: float = -50.0, high: float = 50.0) -> ClaimTest:
    return claim_test("x", per_seed, Interval(low=low, high=high), sentence="X")


def decided(test: ClaimTest) -> ClaimTest:
    (found,) = decide([dataclasses.replace(test, p_adjusted=test.p_value)], margin=1.0, min_seeds=5)
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
