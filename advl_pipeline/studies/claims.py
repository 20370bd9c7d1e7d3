"""Verdicts on the claims C1-C5 of the method, each phrased so that it can fail.

A claim is a conjunction of tests, as strong as its weakest. A study can fall short of it in two ways.
Something that it *lacks* (a control, a part left out) might have shown that a gain has another cause: the claim
cannot be supported, but a gain that is ruled out remains so. Something that it did *not reach* (full data, a second
shot size) is the subject of the claim: without it the claim is undecided, whatever the substitute numbers.

C1 to C4 say that the knowledge of the teacher helps. A gain that a shuffled or random teacher also gives does not
support that, so they contain the same test against each such control and cannot be supported without one:
  - C1, at full data: accuracy, against the baseline and the controls;
  - C2: the gain over the baseline at the fewest shots minus that at the most, and accuracy at the fewest shots,
    against the baseline and the controls;
  - C3, for each shifted set: the drop, against the baseline and the controls, and accuracy there against the
    baseline, since a drop also shrinks for a method that only has a lower accuracy to begin with;
  - C4: the loss from swapping pictures, against the baseline and the controls;
  - C5: accuracy against naive KD, and against the method without each part.

A test requires a mean difference over seeds, in points, to be positive. With at least `min_seeds` seeds, it is
  - supported if the paired t-test over seeds, corrected by Holm over all tests of all claims, has p < 0.05, the mean
    is positive, and the interval over seeds and items excludes 0;
  - not supported if that fails, and a gain of the smallest size that would matter (`margin`) is ruled out: the
    one-sided t-test over seeds against the margin, corrected by Holm over the tests of the claim, has p < 0.025, so
    the study was large enough to detect such a gain. If all seeds give the same number, there is no such test. A
    number below the margin then rules it out if the interval over seeds and items is below the margin too.
Otherwise it is undecided at this size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from advl_pipeline.base.errors import enumeration
from advl_pipeline.evaluation.items import metric_name
from advl_pipeline.evaluation.statistics import holm, paired_t_test, summarise
from advl_pipeline.runs.evaluations import Interval
from advl_pipeline.studies.config import FULL, PARTS, Setting, StudyConfig
from advl_pipeline.studies.numbers import Averaged, MeanDifference, Slope
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.table import USE_CONDITION, Place

Outcome = Literal["supported", "not supported", "undecided at this size"]
SUPPORTED: Outcome = "supported"
NOT_SUPPORTED: Outcome = "not supported"
UNDECIDED: Outcome = "undecided at this size"
SIGNIFICANT = 0.05
RULED_OUT = 0.025
"""One-sided level, that of each side of a 95 % interval."""

MINUS = "\N{MINUS SIGN}"

_QUESTIONS = {"same": "", "part": " (a part of the questions)", "other": " (other questions)"}
"""Note on a drop that is not over the same questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimTest:
    """A mean difference in points that has to be positive. It is undecided until `decide` decides it.

    `name` uses the option names of methods and metrics, `sentence` says the same for readers. `interval` is over
    seeds, `joint_interval` over seeds and items.
    """

    name: str
    sentence: str
    per_seed: tuple[float, ...]
    mean: float
    interval: Interval | None
    joint_interval: Interval
    p_value: float | None
    p_adjusted: float | None = None
    outcome: Outcome = UNDECIDED


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A claim, its outcome in one setting, and the numbers. `reason` is one sentence."""

    claim: str
    setting: str
    statement: str
    outcome: Outcome
    reason: str
    tests: tuple[ClaimTest, ...]
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class _Draft:
    """A claim while its tests are collected.

    `lacks` lists reasons why it cannot be supported, whatever the numbers; `not_reached`, why it cannot be judged.
    """

    claim: str
    setting: Setting
    result: StudyResult
    tests: list[ClaimTest] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)

    def add(self, name: str, sentence: str, number: Slope | MeanDifference, *, factor: float = 1.0) -> None:
        """Add the test that a number of the study, times a factor, is above 0."""
        per_seed = [factor * value for value in number.estimate.per_seed]
        self.tests.append(claim_test(name, per_seed, number.joint_interval.scaled(factor), sentence=sentence))

    def add_mean(self, quantity: Averaged, other: str, like: MeanDifference, name: str, sentence: str) -> None:
        """Add the test of a mean over shots against another method, on the test set of `like`."""
        test_set = like.places[0][:3]
        mean_of_other = next((mean for mean in self.means(quantity, other) if mean.places[0][:3] == test_set), None)
        if mean_of_other is None:
            self.lacks.append(f"{other} is not finished")
            return
        if missing := [place.shots for place in like.places if place not in mean_of_other.places]:
            self.lacks.append(f"{other} is not finished at {enumeration([_shots(number) for number in missing])}")
        self.add(name, sentence, mean_of_other, factor=-1.0 if quantity == "drop" else 1.0)

    def add_gains(self, place: Place) -> None:
        """Add the tests of the focus method against the baseline and the controls at a place."""
        focus = self.result.study.focus
        for other in self.rivals():
            if (gain := self.result.numbers.gain(place, focus, other)) is None:
                self.lacks.append(f"{other} is not finished at {_shots(place.shots)}")
                continue
            size = "full data" if place.shots == FULL else f"{place.shots} labels"
            sentence = f"{self.label(focus)} against {self.label(other)} at {size}, {metric_name(place.metric)}"
            self.tests.append(
                claim_test(
                    f"{place.metric} at {_shots(place.shots)}: {focus} minus {other}",
                    gain.estimate.per_seed,
                    gain.compared.joint_interval,
                    gain.p_seed_holm,
                    sentence=sentence,
                )
            )

    def label(self, method: str) -> str:
        """Return the name of a method in a sentence; a variant of the focus method is named by its difference."""
        study = self.result.study
        label, focus = (study.variant(name).label or name for name in (method, study.focus))
        return f"the {label.removeprefix(f'{focus}, ')}" if label.startswith(f"{focus}, ") else label

    def rivals(self) -> list[str]:
        """Return the baseline and the teacher controls; without a control the claim cannot be supported."""
        study = self.result.study
        controls = [name for name in study.methods if is_teacher_control(study, name)]
        if not controls:
            self.lacks.append("the study runs no shuffled or random teacher")
        return [study.baseline, *controls]

    def in_domain(self) -> list[Place]:
        """Return the places on the in-domain test set with a comparison of the focus method and the baseline."""
        study, numbers, here = self.result.study, self.result.numbers, (self.setting.name, self.setting.reference)
        places = [place for place in numbers.places() if (place.setting, place.test_set) == here]
        return [place for place in places if numbers.gain(place, study.focus, study.baseline)]

    def means(self, quantity: Averaged, other: str) -> list[MeanDifference]:
        """Return the differences between the focus method and another, on each test set with a measurement."""
        wanted = quantity, self.setting.name, other
        means = self.result.numbers.means
        return [mean for mean in means if (mean.quantity, mean.places[0].setting, mean.against) == wanted]


def judge_claims(result: StudyResult) -> tuple[Verdict, ...]:
    """Judge the claims that a study could test, in every setting; runs without a study have no claims.

    A test that is in the table has the p-value of the table. The other tests are one family.
    """
    study, drafts = result.study, list[_Draft]()
    for setting in () if result.of_runs else study.settings:
        for claim, (_, could_be_tested, collect) in _CLAIMS.items():
            # The grid decides, whether or not it is finished.
            if could_be_tested(study, setting):
                drafts.append(_Draft(claim=claim, setting=setting, result=result))
                collect(drafts[-1])
    unadjusted = [test for draft in drafts for test in draft.tests if test.p_adjusted is None]
    adjusted = dict(zip(unadjusted, holm([test.p_value for test in unadjusted]), strict=True))
    verdicts = []
    for draft in drafts:
        corrected = [replace(test, p_adjusted=adjusted.get(test, test.p_adjusted)) for test in draft.tests]
        tests = decide(corrected, margin=study.margin, min_seeds=study.min_seeds)
        outcome, reason = _verdict(draft, tests)
        statement, *_ = _CLAIMS[draft.claim]
        verdicts.append(
            Verdict(
                claim=draft.claim,
                setting=draft.setting.name,
                statement=statement.format(focus=study.variant(study.focus).label, baseline=study.baseline),
                outcome=outcome,
                reason=reason,
                tests=tests,
                notes=tuple(dict.fromkeys(f"Caution: {lack}." for lack in (*draft.not_reached, *draft.lacks))),
            )
        )
    return tuple(verdicts)


def _full_data(draft: _Draft) -> None:
    places = draft.in_domain()
    largest = max((place.size for place in places), default=0)
    at_largest = [place for place in places if place.size == largest]
    full = [place for place in at_largest if place.shots == FULL]
    if at_largest and not full:
        draft.not_reached.append(f"no full data was run; the largest size, {largest} shots, stands in")
    for place in full or at_largest:
        draft.add_gains(place)


def _low_shot(draft: _Draft) -> None:
    """Collect the tests that the gain over the baseline exists at the fewest shots and is larger than at the most."""
    places, result = draft.in_domain(), draft.result
    for metric in dict.fromkeys(place.metric for place in places):
        here = draft.setting.name, metric, draft.setting.reference
        trends = (trend for trend in result.numbers.trends if trend.method == result.study.focus)
        trend = next((trend for trend in trends if trend.gains[0].place[:3] == here), None)
        if trend is None or trend.slope is None:
            draft.not_reached.append(
                "only one shot size was run" if trend else "no seed has finished every shot size"
            )
        else:
            fewest, most = trend.gains[0].place.size, trend.gains[-1].place.size
            name = f"{metric}: gain at {fewest} minus gain at {most} shots"
            focus, baseline = draft.label(result.study.focus), draft.label(result.study.baseline)
            gains = f"How much more {focus} gains over {baseline} at {fewest} labels than at {most}"
            draft.add(name, f"{gains}, {metric_name(metric)}", trend.slope, factor=-math.log2(most / fewest))
    smallest = min((place.size for place in places), default=0)
    for place in (place for place in places if place.size == smallest):
        draft.add_gains(place)


def _shift(draft: _Draft) -> None:
    study, drops = draft.result.study, draft.means("drop", draft.result.study.baseline)
    if not drops:
        draft.lacks.append(f"there is no shifted test set with scores of {study.focus} and {study.baseline}")
    for drop in drops:
        place, questions = drop.places[0], _QUESTIONS[drop.questions or "same"]
        where, focus = f"{place.metric} on {place.test_set}", draft.label(study.focus)
        there = f"on {place.test_set}, {metric_name(place.metric)}"
        for other in draft.rivals():
            name = f"{where}: drop of {other} minus drop of {study.focus}{questions}"
            sentence = f"How much less {focus} loses than {draft.label(other)} {there}{questions}"
            draft.add_mean("drop", other, drop, name, sentence)
        name, baseline = f"{where}: {study.focus} minus {study.baseline}", draft.label(study.baseline)
        draft.add_mean("accuracy", study.baseline, drop, name, f"{focus} against {baseline} {there}")


def _vision(draft: _Draft) -> None:
    study, uses = draft.result.study, draft.means("use", draft.result.study.baseline)
    if not uses:
        draft.lacks.append(f"{study.focus} and {study.baseline} were not both scored with swapped pictures")
    for use, other in itertools.product(uses, draft.rivals() if uses else ()):
        place = use.places[0]
        name = f"{place.metric} on {place.test_set}: what swapping pictures costs {study.focus} beyond {other}"
        sentence = (
            f"How much more {draft.label(study.focus)} than {draft.label(other)} loses with swapped pictures on "
            f"{place.test_set}, {metric_name(place.metric)}"
        )
        draft.add_mean("use", other, use, name, sentence)


def _parts(draft: _Draft) -> None:
    parts = _left_out(draft.result.study)
    if missing := PARTS - set(parts.values()):
        draft.lacks.append(f"the study does not leave out {', '.join(sorted(missing))}")
    means = draft.means("accuracy", draft.result.study.baseline)
    baseline = [mean for mean in means if mean.places[0].test_set == draft.setting.reference]
    for other, like in itertools.product(("naive-kd", *parts), baseline):
        name = f"{parts[other]} (against {other})" if other in parts else f"whole method against {other}"
        rival = f"itself without the {parts[other]}" if other in parts else draft.label(other)
        metric = like.places[0].metric
        sentence = f"{draft.label(draft.result.study.focus)} against {rival}, {metric_name(metric)}"
        draft.add_mean("accuracy", other, like, f"{metric}: {name}", sentence)


def _left_out(study: StudyConfig) -> dict[str, str]:
    """Return the ablations of a study: method -> the part left out."""
    return {name: part for name in study.methods if (part := study.variant(name).part)}


_CLAIMS: Mapping[str, tuple[str, Callable[[StudyConfig, Setting], bool], Callable[[_Draft], None]]] = {
    "C1": ("{focus} beats {baseline} at full data.", lambda study, _: None in study.shots, _full_data),
    "C2": ("The gain over {baseline} grows as shots shrink.", lambda study, _: len(study.shots) > 1, _low_shot),
    "C3": (
        "The drop from the original to the shifted test sets shrinks.",
        lambda _, setting: len(setting.test_sets) > 1,
        _shift,
    ),
    "C4": (
        "The student uses the image more.",
        lambda study, _: USE_CONDITION in study.evaluation.get("probe", (USE_CONDITION,)),
        _vision,
    ),
    "C5": (
        "Each part adds over naive KD.",
        lambda study, _: "naive-kd" in study.methods and bool(_left_out(study)),
        _parts,
    ),
}
"""Claim -> its statement, whether a study's grid could test it, and the function that collects its tests."""


def _shots(shots: str) -> str:
    return "full data" if shots == FULL else f"{shots} shots"


def is_teacher_control(study: StudyConfig, name: str) -> bool:
    """Return whether a variant equals the focus method except for a teacher that knows nothing of the units."""
    variant, focus = study.variant(name), study.variant(study.focus)
    knows_nothing = variant.training.get("teacher_control") == "shuffle" or variant.teacher_prefix == "random:"
    recipes = [
        (each.method, each.teachers, {key: value for key, value in each.training.items() if key != "teacher_control"})
        for each in (variant, focus)
    ]
    return knows_nothing and recipes[0] == recipes[1]


def _verdict(draft: _Draft, tests: Sequence[ClaimTest]) -> tuple[Outcome, str]:
    """Return the outcome of a claim from its tests, and the reason."""
    study = draft.result.study
    failed, undecided = (
        [test for test in tests if test.outcome == outcome] for outcome in (NOT_SUPPORTED, UNDECIDED)
    )
    if not tests:
        why, *_ = [*draft.not_reached, *draft.lacks, "no run of this comparison is finished"]
        return UNDECIDED, f"Not tested: {why}."
    outcome: Outcome
    if failed:
        outcome, reason = NOT_SUPPORTED, f"A gain of {study.margin:g} is ruled out: {failed[0].sentence}."
    elif undecided:
        outcome, reason = UNDECIDED, why_open(undecided[0], min_seeds=study.min_seeds)
    elif draft.lacks:
        outcome, reason = UNDECIDED, f"The numbers agree, but {draft.lacks[0]}."
    else:
        outcome, reason = SUPPORTED, "Every test of the claim holds after correction."
    if draft.not_reached:
        short = draft.not_reached[0]
        return UNDECIDED, f"{short[0].upper()}{short[1:]}. There: {reason}"
    return outcome, reason


def claim_test(
    name: str,
    per_seed: Sequence[float],
    joint_interval: Interval,
    p_adjusted: float | None = None,
    *,
    sentence: str,
) -> ClaimTest:
    """Return the test of differences in points, one per seed, with their interval over seeds and items."""
    mean, _, interval = summarise(per_seed)
    return ClaimTest(
        name=name,
        sentence=sentence,
        per_seed=tuple(per_seed),
        mean=mean,
        interval=interval,
        joint_interval=joint_interval,
        p_value=paired_t_test(per_seed),
        p_adjusted=p_adjusted,
    )


def decide(tests: Sequence[ClaimTest], *, margin: float, min_seeds: int) -> tuple[ClaimTest, ...]:
    """Decide the tests of one claim; their p-values are already corrected over all tests of all claims.

    Args:
        margin: smallest gain in points that would matter.
        min_seeds: minimum number of seeds for a decision.
    """
    decided = []
    # A claim fails with any one of its tests, so the evidence required of each test grows with their number.
    for test, p_margin in zip(tests, holm([margin_p(test, margin) for test in tests]), strict=True):
        outcome = UNDECIDED
        if len(test.per_seed) >= max(min_seeds, 2):
            is_sure = test.p_adjusted is not None and test.p_adjusted < SIGNIFICANT
            if is_sure and test.mean > 0.0 and test.joint_interval.low > 0.0:
                outcome = SUPPORTED
            elif p_margin is not None and p_margin < RULED_OUT:
                outcome = NOT_SUPPORTED
        decided.append(replace(test, outcome=outcome))
    return tuple(decided)


def margin_p(test: ClaimTest, margin: float) -> float | None:
    """Return the one-sided p-value of "the gain is at least the margin"; None if it cannot be tested.

    If every seed gives the same number, there is no such test, and only the items show the uncertainty: the gain
    counts as ruled out if the number and its interval are below the margin.
    """
    over_seeds = paired_t_test([value - margin for value in test.per_seed])
    if over_seeds is not None:
        return over_seeds / 2 if test.mean < margin else 1.0 - over_seeds / 2
    if test.interval is not None and max(test.mean, test.joint_interval.high) < margin:
        return 0.0
    return None


def why_open(test: ClaimTest, *, min_seeds: int) -> str:
    """Return a sentence on why a test is undecided."""
    count, needed = len(test.per_seed), max(min_seeds, 2)
    if count < needed:
        return f"{count} seed{'s' if count != 1 else ''}; a verdict rests on at least {needed}."
    if test.p_adjusted is None:
        return f"{test.sentence}: {signed(test.mean)} points with no spread between seeds, so there is no test."
    if test.p_adjusted >= SIGNIFICANT:
        return f"{test.sentence}: {signed(test.mean)} points, p = {test.p_adjusted:.3f} after correction."
    return f"{test.sentence}: {signed(test.mean)} points, but the interval over seeds and items includes 0."


def signed(value: float) -> str:
    """Write a difference in points with its sign; one that rounds to zero has no sign."""
    text = f"{abs(value):.1f}"
    if float(text) == 0.0:
        return text
    return ("+" if value > 0 else MINUS) + text
