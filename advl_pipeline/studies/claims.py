"""Verdicts on the claims C1-C5 of the method, each phrased so that it can fail.

A claim is a conjunction of *tests*, each about one mean difference over seeds in points, positive when the claim
holds. A test is
  - supported, when at least `min_seeds` seeds agree: the paired t-test over seeds, corrected by Holm over all tests
    of all claims, has p < 0.05, the mean is positive, and where items are known the interval over seeds and items
    excludes 0;
  - not supported, when it is not, and with as many seeds a gain of the smallest size that would matter (`margin`) is
    ruled out: the one-sided t-test over seeds against it, corrected by Holm over the tests of the claim, has
    p < 0.025: the study was large enough to see it;
  - undecided at this size otherwise.
A claim is as good as its weakest test. A gain that a shuffled or random teacher also gives is no support, so the
claims that the teacher helps contain the test against those controls and cannot be supported in a study without one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from advl_pipeline.evaluation.statistics import Interval, holm, paired_t_test, summarise
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.result import Contrast, Place, StudyResult
from advl_pipeline.studies.variants import PARTS

Outcome = Literal["supported", "not supported", "undecided at this size"]
SUPPORTED: Outcome = "supported"
NOT_SUPPORTED: Outcome = "not supported"
UNDECIDED: Outcome = "undecided at this size"
SIGNIFICANT = 0.05
RULED_OUT = 0.025
"""One-sided, as an interval of 95 % has it on either side."""
_NOTHING_FINISHED = "no cell of this comparison is finished"

_STATEMENTS = {
    "C1": "{focus} beats {baseline} at full data.",
    "C2": "The gain over {baseline} grows as shots shrink.",
    "C3": "The drop from the original to the shifted test sets shrinks.",
    "C4": "The student uses the image more.",
    "C5": "Each part adds over naive KD.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimTest:
    """One mean difference that has to be positive. `unit` names what the numbers are."""

    name: str
    unit: str
    per_seed: tuple[float, ...]
    mean: float
    interval: Interval | None
    joint_interval: Interval | None
    p_value: float | None
    p_adjusted: float | None
    outcome: Outcome


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
    """Judge all claims in every setting of a study."""
    drafts = [_Draft(claim=claim, setting=setting.name) for setting in result.study.settings for claim in _STATEMENTS]
    for draft in drafts:
        _collect(draft, result)
    adjusted = iter(holm([test.p_value for draft in drafts for test in draft.tests]))
    return tuple(_judge(draft, result.study, [next(adjusted) for _ in draft.tests]) for draft in drafts)


@dataclass(kw_only=True)
class _Draft:
    """A claim while its tests are collected. `lacks` says why it cannot be supported whatever the numbers say."""

    claim: str
    setting: str
    tests: list[ClaimTest] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    lacks: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, unit: str, per_seed: Sequence[float], joint: Interval | None = None) -> None:
        spread = summarise(per_seed)
        test = paired_t_test(per_seed)
        self.tests.append(
            ClaimTest(
                name=name,
                unit=unit,
                per_seed=tuple(per_seed),
                mean=spread.mean,
                interval=spread.interval,
                joint_interval=joint,
                p_value=test.p_value if test else None,
                p_adjusted=None,
                outcome=UNDECIDED,
            )
        )


def _collect(draft: _Draft, result: StudyResult) -> None:
    {"C1": _full_data, "C2": _low_shot, "C3": _shift, "C4": _vision, "C5": _parts}[draft.claim](draft, result)


def _full_data(draft: _Draft, result: StudyResult) -> None:
    places = _in_domain(draft, result)
    if not places:
        return
    largest = max(place.size for place in places)
    for place in (place for place in places if place.size == largest):
        if place.shots is not None:
            draft.lacks.append(f"the study has no full data; its largest size, {largest} shots, stands in")
        _add_contrast(draft, result, place, result.study.baseline)
        _add_controls(draft, result, place)


def _low_shot(draft: _Draft, result: StudyResult) -> None:
    study = result.study
    for trend in result.trends:
        if (
            trend.setting == draft.setting
            and trend.treated == study.focus
            and trend.test_set == _reference(study, draft.setting)
        ):
            if not trend.slope_per_seed:
                draft.lacks.append("the study has one shot size")
                continue
            doublings = math.log2(trend.sizes[-1] / trend.sizes[0])
            draft.add(
                f"{trend.metric}: gain at {trend.sizes[0]} minus gain at {trend.sizes[-1]} shots",
                "points, along the fitted line",
                [-slope * doublings for slope in trend.slope_per_seed],
            )
    places = _in_domain(draft, result)
    if places:
        smallest = min(place.size for place in places)
        for place in (place for place in places if place.size == smallest):
            _add_contrast(draft, result, place, study.baseline)
            _add_controls(draft, result, place)


def _shift(draft: _Draft, result: StudyResult) -> None:
    changes = [
        (drop.place, dict(zip(drop.change_seeds, drop.change_per_seed, strict=True)))
        for drop in result.drops
        if drop.place.setting == draft.setting and drop.method == result.study.focus and drop.change_per_seed
    ]
    if not changes:
        draft.lacks.append("the study has no shifted test set")
        return
    for metric, test_set in dict.fromkeys((place.metric, place.test_set) for place, _ in changes):
        inside = [by_seed for place, by_seed in changes if (place.metric, place.test_set) == (metric, test_set)]
        draft.add(
            f"{metric} on {test_set}: drop of {result.study.baseline} minus drop of {result.study.focus}",
            "points, mean over shots",
            [-value for value in _mean_over(inside)],
        )


def _vision(draft: _Draft, result: StudyResult) -> None:
    reference = _reference(result.study, draft.setting)
    uses = [
        (use.place, dict(zip(use.change_seeds, use.change_per_seed, strict=True)))
        for use in result.vision
        if use.place.setting == draft.setting
        and use.place.test_set == reference
        and use.kind == "swapped"
        and use.method == result.study.focus
        and use.change_per_seed
    ]
    if not uses:
        draft.lacks.append("no run was scored with swapped pictures")
        return
    for metric in dict.fromkeys(place.metric for place, _ in uses):
        draft.add(
            f"{metric} on {reference}: what swapping pictures costs {result.study.focus} "
            f"beyond {result.study.baseline}",
            "points, mean over shots",
            _mean_over([by_seed for place, by_seed in uses if place.metric == metric]),
        )


def _parts(draft: _Draft, result: StudyResult) -> None:
    study = result.study
    places = _in_domain(draft, result)
    if "naive-kd" not in study.methods:
        draft.lacks.append("the study does not run naive-kd")
    parts = [name for name in study.methods if study.variant(name).part]
    if not parts:
        draft.lacks.append("the study leaves out no part, so it can only compare the whole with naive KD")
    elif missing := PARTS - {study.variant(name).part for name in parts}:
        draft.lacks.append(f"the study does not leave out {', '.join(sorted(missing))}")
    for other in (*(name for name in ("naive-kd",) if name in study.methods), *parts):
        for metric in dict.fromkeys(place.metric for place in places):
            by_size = [
                dict(zip(contrast.seeds, contrast.comparison.per_seed, strict=True))
                for place in places
                if place.metric == metric and (contrast := result.contrast(place, study.focus, other))
            ]
            common = _mean_over(by_size) if by_size else []
            if not common:
                draft.lacks.append(f"{other} is not finished")
            else:
                part = study.variant(other).part
                name = f"{part} (against {other})" if part else f"whole method against {other}"
                draft.add(f"{metric}: {name}", "points, mean over shots", common)


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
    return True


def _add_controls(draft: _Draft, result: StudyResult, place: Place) -> None:
    study = result.study
    controls = [name for name in study.methods if is_teacher_control(study, name)]
    if not controls:
        draft.lacks.append("the study runs no shuffled or random teacher")
    for control in controls:
        if not _add_contrast(draft, result, place, control):
            draft.lacks.append(f"{control} is not finished at {_size(place)}")
        own, rest = result.contrast(place, study.focus, study.baseline), result.contrast(place, study.focus, control)
        if own and rest and own.comparison.effect.points > 0:
            draft.notes.append(_control_note(f"{place.metric} at {_size(place)}", control, own, rest))


def _control_note(where: str, control: str, own: Contrast, rest: Contrast) -> str:
    """Say how much of a gain a teacher that knows nothing gives as well."""
    gain, left, interval = own.comparison.effect.points, rest.comparison.effect.points, rest.comparison.joint_interval
    verdict = "is what the true teacher adds" if interval.low > 0 else "cannot be told from 0"
    return (
        f"{where}: of the gain of {_signed(gain)} points, {control} gives {_signed(gain - left)}; "
        f"the rest, {_signed(left)} [{_signed(interval.low)}, {_signed(interval.high)}], {verdict}."
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _size(place: Place) -> str:
    return "full data" if place.shots is None else f"{place.shots} shots"


def is_teacher_control(study: StudyConfig, name: str) -> bool:
    """Whether the variant is the focus method, option by option, with a teacher that knows nothing of the units."""
    variant, focus = study.variant(name), study.variant(study.focus)
    spoilt = variant.training.get("teacher_control", "none") != "none" or variant.teacher_prefix == "random:"
    rest = {key: value for key, value in variant.training.items() if key != "teacher_control"}
    return (
        spoilt
        and (variant.method, variant.teachers) == (focus.method, focus.teachers)
        and rest == {key: value for key, value in focus.training.items() if key != "teacher_control"}
    )


def _in_domain(draft: _Draft, result: StudyResult) -> list[Place]:
    """Places on the in-domain test set where the focus method met its baseline."""
    reference = _reference(result.study, draft.setting)
    return [
        place
        for place in result.places()
        if place.setting == draft.setting
        and place.test_set == reference
        and result.contrast(place, result.study.focus, result.study.baseline)
    ]


def _reference(study: StudyConfig, setting: str) -> str:
    return next(item.test_sets[0] for item in study.settings if item.name == setting)


def _mean_over(by_seed: Sequence[dict[int, float]]) -> list[float]:
    """Mean of several comparisons for each seed that all of them have."""
    seeds = [seed for seed in by_seed[0] if all(seed in item for item in by_seed)]
    return [sum(item[seed] for item in by_seed) / len(by_seed) for seed in seeds]


def _judge(draft: _Draft, study: StudyConfig, adjusted: Sequence[float | None]) -> Verdict:
    # One test that fails sinks a claim, so the more tests it has, the more each must show.
    against_margin = holm([_margin_p(test.per_seed, study.margin) for test in draft.tests])
    tests = tuple(
        dataclasses.replace(
            test,
            p_adjusted=p_adjusted,
            outcome=_outcome(test, p_adjusted, p_margin, min_seeds=study.min_seeds),
        )
        for test, p_adjusted, p_margin in zip(draft.tests, adjusted, against_margin, strict=True)
    )
    failed = [test for test in tests if test.outcome == NOT_SUPPORTED]
    open_tests = [test for test in tests if test.outcome == UNDECIDED]
    if failed:
        outcome, reason = NOT_SUPPORTED, f"A gain of {study.margin:g} is ruled out: {failed[0].name}."
    elif not tests:
        outcome, reason = UNDECIDED, f"Not tested: {(draft.lacks or [_NOTHING_FINISHED])[0]}."
    elif open_tests:
        outcome, reason = UNDECIDED, _why_open(open_tests[0], study)
    elif draft.lacks:
        outcome, reason = UNDECIDED, f"The numbers agree, but {draft.lacks[0]}."
    else:
        outcome, reason = SUPPORTED, "Every test of the claim holds after correction."
    return Verdict(
        claim=draft.claim,
        setting=draft.setting,
        statement=_STATEMENTS[draft.claim].format(focus=study.variant(study.focus).label, baseline=study.baseline),
        outcome=outcome,
        reason=reason,
        tests=tests,
        notes=tuple(dict.fromkeys([*draft.notes, *(f"Caution: {lack}." for lack in draft.lacks)])),
    )


def _margin_p(per_seed: Sequence[float], margin: float) -> float | None:
    """Return the one-sided p of "the gain is at least the margin", None where it cannot be tested."""
    test = paired_t_test([value - margin for value in per_seed])
    if test is None:
        return None
    below = sum(per_seed) < margin * len(per_seed)
    return test.p_value / 2 if below else 1.0 - test.p_value / 2


def _outcome(test: ClaimTest, p_adjusted: float | None, p_margin: float | None, *, min_seeds: int) -> Outcome:
    if len(test.per_seed) < min_seeds or test.interval is None:
        return UNDECIDED
    items_agree = test.joint_interval is None or test.joint_interval.low > 0.0
    if test.mean > 0.0 and p_adjusted is not None and p_adjusted < SIGNIFICANT and items_agree:
        return SUPPORTED
    return NOT_SUPPORTED if p_margin is not None and p_margin < RULED_OUT else UNDECIDED


def _why_open(test: ClaimTest, study: StudyConfig) -> str:
    count = len(test.per_seed)
    if count < study.min_seeds:
        return f"{count} seed{'s' if count != 1 else ''}; a verdict rests on at least {study.min_seeds}."
    if test.p_adjusted is not None and test.p_adjusted >= SIGNIFICANT:
        return f"{test.name}: {_signed(test.mean)}, p {test.p_adjusted:.2f} after correction."
    return f"{test.name}: {_signed(test.mean)}, but the interval over seeds and items includes 0."
