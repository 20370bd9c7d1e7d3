"""Verdicts: each claim can be supported, can fail, and stays open when the study is too small."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
from synthetic_runs import GAINS, run_trial

from advl_pipeline.studies.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, judge_claims
from advl_pipeline.studies.config import PARTS, SHIPPED
from advl_pipeline.studies.gather import gather_study
from advl_pipeline.studies.table import StudyResult, rows_of

gathered = partial(run_trial, num_seeds=8)


def verdicts(result: StudyResult) -> dict[str, Verdict]:
    return {verdict.claim: verdict for verdict in judge_claims(result)}


def test_a_real_gain_at_full_data_is_supported(tmp_path: Path) -> None:
    found = verdicts(gathered(tmp_path, shots='["full"]', gains={**GAINS, "advl": 26.0}))
    assert found["C1"].outcome == SUPPORTED
    assert all(test.outcome == SUPPORTED for test in found["C1"].tests)


def test_a_gain_that_a_shuffled_teacher_also_gives_is_not_support(tmp_path: Path) -> None:
    gains = {**GAINS, "advl": 26.0, "advl-shuffled": 26.0}
    verdict = verdicts(gathered(tmp_path, shots='["full"]', gains=gains))["C1"]
    assert verdict.outcome != SUPPORTED
    assert verdict.tests[0].outcome == SUPPORTED
    assert any("cannot be told from 0" in note for note in verdict.notes)


def test_without_a_control_nothing_is_supported(tmp_path: Path) -> None:
    gains = {"advl on test": 26.0, "advl on test-shift": 45.0}
    for shots, claims in (('["full"]', ["C1"]), ("[100]", ["C3", "C4"])):
        (folder := tmp_path / shots).mkdir()
        found = verdicts(gathered(folder, shots=shots, methods='["plain", "advl"]', gains=gains))
        for claim in claims:
            assert {test.outcome for test in found[claim].tests} == {SUPPORTED}, claim
            assert found[claim].outcome == UNDECIDED
            assert "shuffled or random teacher" in found[claim].reason


def test_no_gain_is_not_supported_when_the_study_could_have_seen_one(tmp_path: Path) -> None:
    verdict = verdicts(gathered(tmp_path, shots='["full"]', num_seeds=12, gains={"advl": -12.0}))["C1"]
    assert verdict.outcome == NOT_SUPPORTED
    assert "A gain of 1 is ruled out" in verdict.reason


def test_a_study_claims_nothing_of_what_it_does_not_run(tmp_path: Path) -> None:
    """Of one small size there is no full data and no trend; where no part is left out, parts are not judged."""
    found = verdicts(gathered(tmp_path, shots="[100]", num_seeds=12, gains={"advl": -12.0}))
    assert set(found) == {"C3", "C4"}


def test_a_test_that_stands_in_the_table_has_the_number_of_the_table(tmp_path: Path) -> None:
    result = gathered(tmp_path, shots='[100, "full"]', num_seeds=6)
    found = verdicts(result)
    for claim, shots in (("C1", "full"), ("C2", "100")):
        gain = result.one("gain", method="advl", against="plain", test_set="test", shots=shots)
        (test,) = [item for item in found[claim].tests if item.name.endswith("advl minus plain")]
        assert test.mean == pytest.approx(gain.mean)
        assert test.p_adjusted == gain.p_seed_holm


def test_a_missing_control_makes_a_lost_gain_no_less_lost(tmp_path: Path) -> None:
    lines = {"shots": '["full"]', "methods": '["plain", "advl"]'}
    found = verdicts(gathered(tmp_path, num_seeds=12, gains={"advl": -12.0}, **lines))["C1"]
    assert found.outcome == NOT_SUPPORTED


def test_shots_by_number_that_are_all_data_stand_for_full_data(tmp_path: Path) -> None:
    found = verdicts(gathered(tmp_path, shots='[1600, "full"]', gains={**GAINS, "advl": 26.0}))["C1"]
    assert found.outcome == SUPPORTED
    assert all("full data" in test.name for test in found.tests)


def test_a_trend_that_no_seed_has_whole_is_not_seen(tmp_path: Path) -> None:
    result = gathered(tmp_path, num_seeds=6, gains={**GAINS, "advl": 26.0})
    for cell in rows_of(result.cells, method="plain"):
        if (cell.shots == "400") == (cell.seed < 3):
            (result.runs / cell.run / "result.json").unlink()
    found = verdicts(gather_study(result.folder))["C2"]
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
    tmp_path: Path, gains: dict[str, float], supported: bool
) -> None:
    found = verdicts(gathered(tmp_path, shots="[100]", gains=gains))["C3"]
    assert [test.name.partition(": ")[2] for test in found.tests] == [
        "drop of plain minus drop of advl",
        "drop of advl-shuffled minus drop of advl",
        "advl minus plain",
    ]
    assert found.tests[0].outcome == SUPPORTED
    assert (found.outcome == SUPPORTED) == supported


def test_use_of_pictures_that_a_control_brings_too_is_no_support(tmp_path: Path) -> None:
    for name, of_control, supported in (("own", 0.0, True), ("shared", 30.0, False)):
        (tmp_path / name).mkdir()
        gains = {"advl": 30.0, "advl-shuffled": of_control}
        found = verdicts(gathered(tmp_path / name, shots="[100]", test_sets='["test"]', gains=gains))["C4"]
        assert found.tests[0].outcome == SUPPORTED
        assert (found.outcome == SUPPORTED) == supported


def test_a_control_differs_from_the_focus_in_its_teacher_alone(tmp_path: Path) -> None:
    extra = "focus = 'advl-no-anchor'\n"
    methods = ["plain", "naive-kd", "advl-shuffled", "advl-no-anchor"]
    gains = {**GAINS, "advl-no-anchor": 26.0}
    lines = {"methods": str(methods).replace("'", '"'), "shots": '["full"]'}
    found = verdicts(gathered(tmp_path, gains=gains, extra=extra, **lines))["C1"]
    assert found.outcome == UNDECIDED
    assert "no shuffled or random teacher" in found.reason
    own = "[variants.control]\nmethod = 'advl'\nanchor-weight = 0.0\nteacher-control = 'shuffle'\n"
    lines["methods"] = str([*methods, "control"]).replace("'", '"')
    assert verdicts(gathered(tmp_path, gains=gains, extra=extra + own, **lines))["C1"].outcome == SUPPORTED


def test_a_control_without_results_at_one_size_supports_nothing(tmp_path: Path) -> None:
    result = gathered(tmp_path, gains={**GAINS, "advl": 26.0, "advl on test-shift": 45.0})
    assert verdicts(result)["C3"].outcome == SUPPORTED
    for cell in rows_of(result.cells, method="advl-shuffled", shots="400"):
        (result.runs / cell.run / "result.json").unlink()
    found = verdicts(gather_study(result.folder))
    for claim in ("C3", "C4"):
        assert found[claim].outcome == UNDECIDED
        assert "Caution: advl-shuffled is not finished at 400 shots." in found[claim].notes


def test_what_a_control_gives_of_a_gain_is_told_over_the_same_seeds_and_when_it_is_sure(tmp_path: Path) -> None:
    result = gathered(tmp_path, shots='["full"]', gains={**GAINS, "advl": 26.0})
    assert "is what the true teacher adds" in verdicts(result)["C1"].notes[0]
    for cell in rows_of(result.cells, method="advl-shuffled", seed=0):
        (result.runs / cell.run / "result.json").unlink()
    note = verdicts(gather_study(result.folder))["C1"].notes[0]
    assert "advl-shuffled and plain are finished for other seeds" in note


def test_the_gain_that_grows_is_over_the_baseline_of_the_study(tmp_path: Path) -> None:
    """A focus that the table compares with another method is judged against the baseline all the same."""
    own = '[variants.advl-own]\nmethod = "advl"\nbaseline = "naive-kd"\n'
    methods = '["plain", "naive-kd", "advl-own", "advl"]'
    result = gathered(
        tmp_path, extra=f'focus = "advl-own"\n{own}', methods=methods, gains={"advl-own": 9.0}, num_seeds=8
    )
    (test,) = [test for test in verdicts(result)["C2"].tests if "minus gain" in test.name]
    along = result.find("gain along shots", method="advl-own", test_set="test")
    assert {gain.against for gain in along} == {"plain"}
    assert test.mean == pytest.approx(along[0].mean - along[-1].mean)


def test_changes_are_averaged_seed_by_seed_where_a_cell_is_missing(tmp_path: Path) -> None:
    result = gathered(tmp_path, num_seeds=6)
    (cell,) = rows_of(result.cells, method="plain", shots="100", seed=1)
    (result.runs / cell.run / "result.json").unlink()
    result = gather_study(result.folder)
    changes = result.find("drop change", method="advl", test_set="test-shift")
    by_size = [dict(zip(change.seeds, change.per_seed, strict=True)) for change in changes]
    assert [sorted(values) for values in by_size] == [[0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    expected = [-(by_size[0][seed] + by_size[1][seed]) / 2 for seed in by_size[0]]
    assert verdicts(result)["C3"].tests[0].per_seed == pytest.approx(expected)


def test_one_part_left_out_is_not_every_part(tmp_path: Path) -> None:
    gains = {**GAINS, "advl": 26.0, "naive-kd": 4.0}
    methods = ["plain", "naive-kd", "advl", "advl-shuffled", "advl-no-anchor"]
    lines = {"shots": "[100]", "test_sets": '["test"]'}
    few = verdicts(gathered(tmp_path, methods=str(methods).replace("'", '"'), gains=gains, **lines))["C5"]
    assert {test.outcome for test in few.tests} == {SUPPORTED}
    assert few.outcome == UNDECIDED
    assert "confidence weighting" in few.reason
    parts = [name for name, variant in SHIPPED.items() if variant.part in PARTS]
    all_methods = str([*methods, *parts]).replace("'", '"')
    every = verdicts(gathered(tmp_path, methods=all_methods, gains=gains, **lines))["C5"]
    assert every.outcome == SUPPORTED


def test_the_margin_decides_what_is_ruled_out(tmp_path: Path) -> None:
    result = gathered(tmp_path, shots='["full"]', gains={**GAINS, "advl": 2.0})
    outcomes = {
        margin: verdicts(dataclasses.replace(result, study=dataclasses.replace(result.study, margin=margin)))[
            "C1"
        ].outcome
        for margin in (0.0, 50.0)
    }
    assert outcomes == {0.0: UNDECIDED, 50.0: NOT_SUPPORTED}
