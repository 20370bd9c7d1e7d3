"""Verdicts on the claims C1-C5 of the method, each phrased so that it can fail.

A claim is a conjunction of tests (`claim_tests`), as good as its weakest. A study can fall short of it in two ways.
What it *lacks* (a control, a part left out) might have shown that a gain has another cause: it keeps a claim from
being supported, but a gain that is ruled out stays so. What it did *not reach* (full data, a second shot size) is
what the claim is about: without it the claim is undecided, whatever the numbers that stand in.

C1 to C4 say that what the teacher knows helps. A gain that a shuffled or random teacher also gives is no support for
that, so they contain the same test against each such control and cannot be supported in a study without one:
  - C1, at full data: accuracy, against the baseline and the controls;
  - C2: the gain over the baseline at the fewest shots minus that at the most, and accuracy at the fewest shots,
    against the baseline and the controls;
  - C3, for each shifted set: the drop, against the baseline and the controls, and accuracy there against the
    baseline. A drop also shrinks where a method starts lower, and a method that only got worse is no more robust;
  - C4: what swapping pictures costs, against the baseline and the controls;
  - C5: accuracy against naive KD, and against the method without each part.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from advl_pipeline.evaluation.statistics import Interval, holm
from advl_pipeline.studies.claim_tests import (
    NOT_SUPPORTED,
    SIGNIFICANT,
    SUPPORTED,
    UNDECIDED,
    ClaimTest,
    Outcome,
    signed,
    try_tests,
    untried,
    why_open,
)
from advl_pipeline.studies.config import Setting, StudyConfig
from advl_pipeline.studies.result import ClaimQuantity, Contrast, MeanContrast, Place, StudyResult
from advl_pipeline.studies.table import USE_KIND
from advl_pipeline.studies.variants import PARTS

_NOTHING_FINISHED = "no cell of this comparison is finished"
_QUESTIONS = {"same": "", "part": " (a part of the questions)", "other": " (other questions)"}
"""Said beside a drop that is not over the same questions."""

_STATEMENTS = {
    "C1": "{focus} beats {baseline} at full data.",
    "C2": "The gain over {baseline} grows as shots shrink.",
    "C3": "The drop from the original to the shifted test sets shrinks.",
    "C4": "The student uses the image more.",
    "C5": "Each part adds over naive KD.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A claim, what became of it in one setting, and the numbers. `reason` is one sentence."""

    claim: str
    setting: str
    statement: str
    outcome: Outcome
    reason: str
    tests: tuple[ClaimTest, ...]
    notes: tuple[str, ...]


def judge_claims(result: StudyResult) -> tuple[Verdict, ...]:
    """Judge the claims that a study could test, in every setting; runs that no study asked for claim nothing.

    A test that is a contrast of the table has the p of the table. The other tests are one family.
    """
    if result.of_runs:
        return ()
    drafts = [
        _Draft(claim=claim, setting=setting.name)
        for setting in result.study.settings
        for claim in _STATEMENTS
        if _could_test(claim, result.study, setting)
    ]
    for draft in drafts:
        _collect(draft, result)
    own = [test for draft in drafts for test in draft.tests if test not in draft.of_table]
    adjusted = dict(zip(own, holm([test.p_value for test in own]), strict=True))
    return tuple(
        _judge(draft, result.study, [(adjusted | draft.of_table)[test] for test in draft.tests]) for draft in drafts
    )


def _could_test(claim: str, study: StudyConfig, setting: Setting) -> bool:
    """Whether the grid of a study holds what a claim is about, however much of it is finished."""
    parts = [name for name in study.methods if study.variant(name).part]
    return {
        "C1": None in study.shots,
        "C2": len(study.shots) > 1,
        "C3": len(setting.test_sets) > 1,
        "C4": USE_KIND in study.evaluation.get("probe", (USE_KIND,)),
        "C5": "naive-kd" in study.methods and bool(parts),
    }[claim]


@dataclass(kw_only=True)
class _Draft:
    """A claim while its tests are collected.

    `lacks` says why it cannot be supported whatever the numbers say, `not_reached` why it cannot be judged at all.
    `of_table` holds the adjusted p of the tests that are contrasts of the table.
    """

    claim: str
    setting: str
    tests: list[ClaimTest] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    lacks: list[str] = dataclasses.field(default_factory=list)
    not_reached: list[str] = dataclasses.field(default_factory=list)
    of_table: dict[ClaimTest, float | None] = dataclasses.field(default_factory=dict)

    def add(self, name: str, unit: str, per_seed: Sequence[float], joint: Interval) -> None:
        self.tests.append(untried(name=name, unit=unit, per_seed=per_seed, joint_interval=joint))


def _collect(draft: _Draft, result: StudyResult) -> None:
    {"C1": _full_data, "C2": _low_shot, "C3": _shift, "C4": _vision, "C5": _parts}[draft.claim](draft, result)


def _full_data(draft: _Draft, result: StudyResult) -> None:
    places = _in_domain(draft, result)
    if not places:
        return
    largest = max(place.size for place in places)
    found = [place for place in places if place.size == largest]
    full = [place for place in found if place.shots is None]
    if not full:
        draft.not_reached.append(f"no full data was run; the largest size, {largest} shots, stands in")
    for place in full or found:
        _add_contrast(draft, result, place, result.study.baseline)
        _add_controls(draft, result, place)


def _low_shot(draft: _Draft, result: StudyResult) -> None:
    study = result.study
    places = _in_domain(draft, result)
    for metric in dict.fromkeys(place.metric for place in places):
        _add_growth(draft, result, metric)
    if places:
        smallest = min(place.size for place in places)
        for place in (place for place in places if place.size == smallest):
            _add_contrast(draft, result, place, study.baseline)
            _add_controls(draft, result, place)


def _add_growth(draft: _Draft, result: StudyResult, metric: str) -> None:
    """Add the test that the gain over the baseline is larger at the fewest shots than at the most."""
    wanted = (draft.setting, metric, result.study.setting(draft.setting).reference, result.study.focus)
    trend = next(
        (item for item in result.trends if (item.setting, item.metric, item.test_set, item.treated) == wanted), None
    )
    if trend is None:
        draft.not_reached.append("no seed has finished every shot size")
    elif trend.slope_joint is None:
        draft.not_reached.append("only one shot size was run")
    else:
        doublings = math.log2(trend.sizes[-1] / trend.sizes[0])
        draft.add(
            f"{metric}: gain at {trend.sizes[0]} minus gain at {trend.sizes[-1]} shots",
            "points, along the fitted line",
            [-slope * doublings for slope in trend.slope_per_seed],
            _scaled(trend.slope_joint, -doublings),
        )


def _shift(draft: _Draft, result: StudyResult) -> None:
    study = result.study
    drops = _against_baseline(draft, result, "drop")
    if not drops:
        draft.lacks.append(f"there is no shifted test set with scores of {study.focus} and {study.baseline}")
        return
    controls = _controls(draft, study)
    for drop in drops:
        where, questions = f"{drop.metric} on {drop.test_set}", _QUESTIONS[drop.questions or "same"]
        for other in (study.baseline, *controls):
            name = f"{where}: drop of {other} minus drop of {study.focus}{questions}"
            _add_mean(draft, result, "drop", other, drop, name)
        _add_mean(draft, result, "accuracy", study.baseline, drop, f"{where}: {study.focus} minus {study.baseline}")


def _vision(draft: _Draft, result: StudyResult) -> None:
    study = result.study
    uses = _against_baseline(draft, result, "use")
    if not uses:
        draft.lacks.append(f"{study.focus} and {study.baseline} were not both scored with swapped pictures")
        return
    for use, other in itertools.product(uses, (study.baseline, *_controls(draft, study))):
        name = f"{use.metric} on {use.test_set}: what swapping pictures costs {study.focus} beyond {other}"
        _add_mean(draft, result, "use", other, use, name)


def _parts(draft: _Draft, result: StudyResult) -> None:
    study = result.study
    parts = {name: study.variant(name).part for name in study.methods if study.variant(name).part}
    if missing := PARTS - set(parts.values()):
        draft.lacks.append(f"the study does not leave out {', '.join(sorted(missing))}")
    reference = study.setting(draft.setting).reference
    baseline = [found for found in _against_baseline(draft, result, "accuracy") if found.test_set == reference]
    for other, like in itertools.product(("naive-kd", *parts), baseline):
        name = f"{parts[other]} (against {other})" if other in parts else f"whole method against {other}"
        _add_mean(draft, result, "accuracy", other, like, f"{like.metric}: {name}")


def _against_baseline(draft: _Draft, result: StudyResult, quantity: ClaimQuantity) -> list[MeanContrast]:
    """Return what the focus method has more than the baseline, on each test set where the quantity was measured."""
    wanted = (draft.setting, quantity, result.study.baseline)
    return [found for found in result.mean_contrasts if (found.setting, found.quantity, found.baseline) == wanted]


def _add_mean(
    draft: _Draft, result: StudyResult, quantity: ClaimQuantity, other: str, like: MeanContrast, name: str
) -> None:
    """Add the test of a mean over shots against another method, on the test set of `like`."""
    found = result.mean_contrast(
        quantity=quantity, baseline=other, setting=like.setting, metric=like.metric, test_set=like.test_set
    )
    if found is None:
        draft.lacks.append(f"{other} is not finished")
        return
    if missing := [shots for shots in like.shots if shots not in found.shots]:
        draft.lacks.append(f"{other} is not finished at {' and '.join(map(_shots, missing))}")
    if quantity == "drop":
        per_seed = [-value for value in found.per_seed]
        draft.add(name, "points, mean over shots", per_seed, _scaled(found.joint_interval, -1.0))
    else:
        draft.add(name, "points, mean over shots", found.per_seed, found.joint_interval)


def _scaled(interval: Interval, factor: float) -> Interval:
    """Return the interval of a number times a negative factor."""
    return dataclasses.replace(interval, low=interval.high * factor, high=interval.low * factor)


def _add_contrast(draft: _Draft, result: StudyResult, place: Place, baseline: str) -> bool:
    """Add the test of the focus method against another one, if both have results there."""
    contrast = result.contrast(place, result.study.focus, baseline)
    if contrast is None:
        return False
    draft.add(
        f"{place.metric} at {_size(place)}: {result.study.focus} minus {baseline}",
        "points",
        contrast.comparison.per_seed,
        contrast.comparison.joint_interval,
    )
    draft.of_table[draft.tests[-1]] = contrast.seed_p_adjusted
    return True


def _add_controls(draft: _Draft, result: StudyResult, place: Place) -> None:
    study = result.study
    for control in _controls(draft, study):
        if not _add_contrast(draft, result, place, control):
            draft.lacks.append(f"{control} is not finished at {_size(place)}")
        own, rest = result.contrast(place, study.focus, study.baseline), result.contrast(place, study.focus, control)
        if own and rest and own.comparison.effect.points > 0:
            draft.notes.append(_control_note(f"{place.metric} at {_size(place)}", control, own, rest))


def _controls(draft: _Draft, study: StudyConfig) -> list[str]:
    """Return the teacher controls of a study; without one the claim cannot be supported."""
    controls = [name for name in study.methods if is_teacher_control(study, name)]
    if not controls:
        draft.lacks.append("the study runs no shuffled or random teacher")
    return controls


def _control_note(where: str, control: str, own: Contrast, rest: Contrast) -> str:
    """Say how much of a gain a teacher that knows nothing gives as well."""
    if own.seeds != rest.seeds:
        return f"{where}: {control} and {own.baseline} are finished for other seeds, so no part of the gain is told."
    gain, left, interval = own.comparison.effect.points, rest.comparison.effect.points, rest.comparison.joint_interval
    over_seeds = rest.seed_p_adjusted
    if interval.low <= 0:
        verdict = "cannot be told from 0"
    elif over_seeds is None or over_seeds >= SIGNIFICANT:
        verdict = f"is not settled over {len(rest.seeds)} seed{'s' if len(rest.seeds) != 1 else ''}"
    else:
        verdict = "is what the true teacher adds"
    return (
        f"{where}: of the gain of {signed(gain)} points, {control} gives {signed(gain - left)}; "
        f"the rest, {signed(left)} [{signed(interval.low)}, {signed(interval.high)}], {verdict}."
    )


def _size(place: Place) -> str:
    return _shots(place.shots)


def _shots(shots: int | None) -> str:
    return "full data" if shots is None else f"{shots} shots"


def is_teacher_control(study: StudyConfig, name: str) -> bool:
    """Whether the variant is the focus method, option by option, with a teacher that knows nothing of the units."""
    variant, focus = study.variant(name), study.variant(study.focus)
    spoilt = variant.training.get("teacher_control") == "shuffle" or variant.teacher_prefix == "random:"
    rest = {key: value for key, value in variant.training.items() if key != "teacher_control"}
    return (
        spoilt
        and (variant.method, variant.teachers) == (focus.method, focus.teachers)
        and rest == {key: value for key, value in focus.training.items() if key != "teacher_control"}
    )


def _in_domain(draft: _Draft, result: StudyResult) -> list[Place]:
    """Places on the in-domain test set where the focus method met its baseline."""
    reference = result.study.setting(draft.setting).reference
    return [
        place
        for place in result.places()
        if place.setting == draft.setting
        and place.test_set == reference
        and result.contrast(place, result.study.focus, result.study.baseline)
    ]


def _judge(draft: _Draft, study: StudyConfig, adjusted: Sequence[float | None]) -> Verdict:
    tests = try_tests(draft.tests, adjusted, margin=study.margin, min_seeds=study.min_seeds)
    outcome, reason = _verdict(draft, study, tests)
    return Verdict(
        claim=draft.claim,
        setting=draft.setting,
        statement=_STATEMENTS[draft.claim].format(focus=study.variant(study.focus).label, baseline=study.baseline),
        outcome=outcome,
        reason=reason,
        tests=tests,
        notes=tuple(
            dict.fromkeys([*draft.notes, *(f"Caution: {lack}." for lack in (*draft.not_reached, *draft.lacks))])
        ),
    )


def _verdict(draft: _Draft, study: StudyConfig, tests: Sequence[ClaimTest]) -> tuple[Outcome, str]:
    """Return what becomes of a claim by its tests, and why."""
    failed = [test for test in tests if test.outcome == NOT_SUPPORTED]
    open_tests = [test for test in tests if test.outcome == UNDECIDED]
    if not tests:
        return UNDECIDED, f"Not tested: {[*draft.not_reached, *draft.lacks, _NOTHING_FINISHED][0]}."
    outcome: Outcome
    if failed:
        outcome, reason = NOT_SUPPORTED, f"A gain of {study.margin:g} is ruled out: {failed[0].name}."
    elif open_tests:
        outcome, reason = UNDECIDED, why_open(open_tests[0], min_seeds=study.min_seeds)
    elif draft.lacks:
        outcome, reason = UNDECIDED, f"The numbers agree, but {draft.lacks[0]}."
    else:
        outcome, reason = SUPPORTED, "Every test of the claim holds after correction."
    if draft.not_reached:
        short = draft.not_reached[0]
        return UNDECIDED, f"{short[0].upper()}{short[1:]}. There: {reason}"
    return outcome, reason
