"""Every number of a study, computed from its table of item scores (`table.py`).

Each kind of number is a record of its own, which the report reads:
  - `Accuracy` of a method at a place, in percent; all others are in points;
  - `Gain` over another method, with its tests. Holm's p-values are over a family: all methods against their baselines
    ("grid"), or the focus method against every other ("focus");
  - `Trend`: the gains over the study's baseline along the shots, over the seeds that finished all sizes, and their
    slope for each doubling of the shots;
  - `Loss`: the drop from the in-domain test set to the shifted one of the place, or the use of pictures, which is the
    loss with the picture replaced; both with the accuracies before and after, and the loss minus that of the
    baseline. If the shifted set asks the same questions in another way (`questions` is "same"), all are over the
    questions in both sets; otherwise each accuracy is over its complete set;
  - `MeanDifference`: accuracy, drop or use of the focus method minus that of another, averaged over shot sizes.

As a frame (`Numbers.frame`), each of their statistics is a row: a `Number`.

Shapes: S seeds, N items of a test set, K shot sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from advl_pipeline.evaluation.shift import Questions, lost_to_shift, match_questions
from advl_pipeline.evaluation.statistics import (
    Comparison,
    Contribution,
    compare,
    holm,
    joint_interval,
    paired_t_test,
    sign_flip_test,
    slope_per_doubling,
    summarise,
)
from advl_pipeline.runs.evaluations import TRUE_PICTURE, Interval
from advl_pipeline.studies.table import USE_CONDITION, Place, Scores, Table, paired, weighted_sum

Lost = Literal["drop", "use"]
"""What a method loses: accuracy on a shifted set, or with its pictures replaced."""

Averaged = Literal["accuracy", "drop", "use"]
"""A quantity of which claims need the mean over shot sizes."""

_OTHER_QUESTIONS: Mapping[Questions | None, str] = {
    None: "",
    "same": "",
    "part": " to a part of the questions",
    "other": " to other questions",
}
"""Suffix of the name of a drop that is not over the same questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A row of the frame of a study's numbers: one statistic of a quantity, with its 95 % interval if it has one."""

    place: Place
    method: str
    against: str | None = None
    quantity: str
    statistic: str
    value: float
    interval: Interval | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The value of each seed, and their mean with standard deviation and Student's t interval over seeds."""

    by_seed: Mapping[int, float]
    mean: float
    deviation: float | None
    interval: Interval | None

    @classmethod
    def of(cls, by_seed: Mapping[int, float]) -> Estimate:
        """Return the estimate from a value for each seed."""
        mean, deviation, interval = summarise(list(by_seed.values()))
        return cls(by_seed=by_seed, mean=mean, deviation=deviation, interval=interval)

    @property
    def per_seed(self) -> tuple[float, ...]:
        """The value of each seed."""
        return tuple(self.by_seed.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """An estimate for a method at a place."""

    place: Place
    method: str
    estimate: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy(Measured):
    """The accuracy of a method, in percent, and the runs of its seeds."""

    num_items: int
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain(Measured):
    """The accuracy of a method minus that of another, paired by seed and item."""

    against: str
    compared: Comparison
    p_seed_holm: float | None = None
    p_item_holm: float | None = None
    family: Literal["grid", "focus"]
    family_size: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """The change of a gain for each doubling of the shots; `joint_interval` is over seeds and items."""

    estimate: Estimate
    joint_interval: Interval
    p_seed: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """The gains of a method over the study's baseline along the shots, over the seeds that finished all sizes."""

    method: str
    against: str
    gains: tuple[Measured, ...]
    slope: Slope | None
    """None if all places have the same size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What a method loses from one side to the other: the in-domain test set, or the condition, that `against` names.

    `change` is the loss minus that of the baseline; None for the baseline.
    """

    quantity: Lost
    place: Place
    method: str
    against: str
    questions: Questions | None
    before: Estimate
    after: Estimate
    lost: Estimate
    change: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanDifference:
    """A quantity of the focus method minus that of another, averaged over the sizes of `places`."""

    quantity: Averaged
    places: tuple[Place, ...]
    method: str
    against: str
    questions: Questions | None
    estimate: Estimate
    joint_interval: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """Every number of a study, each kind in the order of the grid."""

    accuracies: tuple[Accuracy, ...]
    gains: tuple[Gain, ...]
    trends: tuple[Trend, ...]
    losses: tuple[Loss, ...]
    means: tuple[MeanDifference, ...]

    def places(self) -> list[Place]:
        """Return the places with an accuracy."""
        return list(dict.fromkeys(accuracy.place for accuracy in self.accuracies))

    def accuracy(self, place: Place, method: str) -> Accuracy | None:
        """Return the accuracy of a method; None if no seed has finished."""
        wanted = place, method
        return next((each for each in self.accuracies if (each.place, each.method) == wanted), None)

    def gain(self, place: Place, method: str, against: str) -> Gain | None:
        """Return the gain of a method over another; None if no seed has finished both."""
        wanted = place, method, against
        return next((each for each in self.gains if (each.place, each.method, each.against) == wanted), None)

    def frame(self) -> Iterator[Number]:
        """Yield every statistic as a row. The place of a mean over sizes, and of a slope, names all its sizes."""
        for accuracy in self.accuracies:
            at = partial(Number, place=accuracy.place, method=accuracy.method, quantity="accuracy")
            yield from _rows(at, accuracy.estimate)
            yield at(statistic="items", value=float(accuracy.num_items))
        for gain in self.gains:
            at = partial(Number, place=gain.place, method=gain.method, against=gain.against, quantity="gain")
            compared = gain.compared
            yield from _rows(at, gain.estimate, compared.joint_interval)
            yield at(statistic="mean over items", value=gain.estimate.mean, interval=compared.item_interval)
            tests = {
                "percent of the baseline": compared.relative_percent,
                "p over seeds": compared.p_seed,
                "p over seeds, Holm": gain.p_seed_holm,
                "p over seeds, sign flips": compared.p_sign_flip,
                "p over items": compared.p_item,
                "p over items, Holm": gain.p_item_holm,
            }
            yield from (at(statistic=name, value=value) for name, value in tests.items() if value is not None)
            yield at(statistic="tests in the family", value=float(gain.family_size))
        for trend in self.trends:
            about = partial(Number, method=trend.method, against=trend.against)
            for along in trend.gains:
                yield from _rows(partial(about, place=along.place, quantity="gain along shots"), along.estimate)
            if (slope := trend.slope) is not None:
                at = partial(about, place=_over([along.place for along in trend.gains]), quantity="slope")
                yield from _rows(at, slope.estimate, slope.joint_interval)
                if slope.p_seed is not None:
                    yield at(statistic="p over seeds", value=slope.p_seed)
        for loss in self.losses:
            quantity = f"{loss.quantity}{_OTHER_QUESTIONS[loss.questions]}"
            about = partial(Number, place=loss.place, method=loss.method, against=loss.against)
            yield from _rows(partial(about, quantity=quantity), loss.lost)
            yield from _rows(partial(about, quantity=f"{quantity}, before"), loss.before)
            yield from _rows(partial(about, quantity=f"{quantity}, after"), loss.after)
            if loss.change is not None:
                yield from _rows(partial(about, quantity=f"{quantity}, minus the baseline's"), loss.change)
        for mean in self.means:
            quantity = f"mean {mean.quantity}{_OTHER_QUESTIONS[mean.questions]}"
            at = partial(
                Number, place=_over(mean.places), method=mean.method, against=mean.against, quantity=quantity
            )
            yield from _rows(at, mean.estimate, mean.joint_interval)


def _rows(at: Callable[..., Number], estimate: Estimate, joint: Interval | None = None) -> Iterator[Number]:
    """Yield the rows of an estimate, `at` a place; `joint` is its interval over seeds and items."""
    yield at(statistic="mean", value=estimate.mean, interval=estimate.interval)
    if joint is not None:
        yield at(statistic="mean over seeds and items", value=estimate.mean, interval=joint)
    if estimate.deviation is not None:
        yield at(statistic="deviation", value=estimate.deviation)
    yield from (at(statistic=f"seed {seed}", value=value) for seed, value in estimate.by_seed.items())


def _over(places: Sequence[Place]) -> Place:
    """Return the place of a number over several sizes, with the largest size and the names of all."""
    return places[-1]._replace(shots=" ".join(place.shots for place in places))


def numbers_of(table: Table) -> Numbers:
    """Compute every number of a study."""
    sides = _sides(table)
    return Numbers(
        accuracies=tuple(_accuracies(table)),
        gains=tuple(_gains(table)),
        trends=tuple(_trends(table)),
        losses=tuple(_losses(table, sides)),
        means=tuple(_means(table, sides)),
    )


def _accuracies(table: Table) -> Iterator[Accuracy]:
    for (place, method, condition), scores in table.scores.items():
        if condition == TRUE_PICTURE:
            yield Accuracy(
                place=place,
                method=method,
                estimate=Estimate.of(scores.by_seed),
                num_items=scores.matrix.shape[1],
                runs=scores.runs,
            )


def _gains(table: Table) -> Iterator[Gain]:
    study = table.study
    grid = [(method, study.baseline_of(method)) for method in study.methods if study.baseline_of(method) != method]
    focus = [(study.focus, other) for other in study.methods if study.focus in study.methods and other != study.focus]
    families: dict[Literal["grid", "focus"], list[tuple[str, str]]] = {
        "grid": grid,
        "focus": [pair for pair in focus if pair not in grid],
    }
    for family, pairs in families.items():
        gains: list[Gain] = []
        for place, (treated, baseline) in itertools.product(table.places, pairs):
            if both := paired(table.accuracy(place, treated), table.accuracy(place, baseline)):
                left, other = both
                compared = compare(left.matrix, other.matrix, groups=left.groups)
                estimate = Estimate.of(dict(zip(left.seeds, compared.per_seed, strict=True)))
                gains.append(
                    Gain(
                        place=place,
                        method=treated,
                        estimate=replace(estimate, mean=compared.mean),
                        against=baseline,
                        compared=compared,
                        family=family,
                    )
                )
        of_seeds = holm([gain.compared.p_seed for gain in gains])
        of_items = holm([gain.compared.p_item for gain in gains])
        for gain, p_seed, p_item in zip(gains, of_seeds, of_items, strict=True):
            yield replace(gain, p_seed_holm=p_seed, p_item_holm=p_item, family_size=len(gains))


def _trends(table: Table) -> Iterator[Trend]:
    study = table.study
    # Claims and figures use the study's baseline, whatever else a method is compared with.
    methods = [method for method in study.methods if method != study.baseline]
    for along, method in itertools.product(table.along_shots(), methods):
        both = {place: (table.accuracy(place, method), table.accuracy(place, study.baseline)) for place in along}
        places = [place for place, pair in both.items() if all(pair)]
        common = paired(*itertools.chain(*(both[place] for place in places)))
        if not common:
            continue
        seeds = tuple(sorted(common[0].seeds, key=study.seeds.index))
        pairs = [
            (left.of_seeds(seeds), other.of_seeds(seeds))
            for left, other in zip(common[::2], common[1::2], strict=True)
        ]
        gains = [100.0 * (left.matrix.mean(axis=1) - other.matrix.mean(axis=1)) for left, other in pairs]
        estimates = [Estimate.of(dict(zip(seeds, gain_S.tolist(), strict=True))) for gain_S in gains]
        slope = None
        sizes = [place.size for place in places]
        if len(set(sizes)) > 1:
            slopes = slope_per_doubling(sizes, np.stack(gains, axis=1)).tolist()
            p_value = paired_t_test(slopes)
            # The slope is linear in the gains, so it is the mean of the slopes of the items.
            gain_SNK = np.stack([left.matrix - other.matrix for left, other in pairs], axis=2)
            slope_SN = slope_per_doubling(sizes, gain_SNK.reshape(-1, len(pairs))).reshape(gain_SNK.shape[:2])
            slope = Slope(
                estimate=Estimate.of(dict(zip(seeds, slopes, strict=True))),
                joint_interval=joint_interval([Contribution(values_SN=slope_SN, groups=pairs[0][0].groups)]),
                p_seed=sign_flip_test(slopes) if p_value is None else p_value,
            )
        yield Trend(
            method=method,
            against=study.baseline,
            gains=tuple(
                Measured(place=place, method=method, estimate=estimate)
                for place, estimate in zip(places, estimates, strict=True)
            ),
            slope=slope,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sides:
    """The scores of a method on two sides, and the loss from one to the other; `questions` is of two test sets."""

    questions: Questions | None
    before: Scores
    after: Scores
    lost: Scores


@dataclass(frozen=True, slots=True)
class _Side:
    """What is lost at a place, and to which side."""

    quantity: Lost
    place: Place
    against: str


def _sides(table: Table) -> dict[_Side, dict[str, _Sides]]:
    """Return both sides of each method with another picture or none, and on each shifted set.

    If the same questions are asked in another way, both accuracies are over these; else each is over its full set.
    """
    sides: dict[_Side, dict[str, _Sides]] = {}
    for (place, method, condition), other in table.scores.items():
        reference = table.reference(place)
        origin = table.accuracy(place if condition else place._replace(test_set=reference), method)
        if origin is other or origin is None or not (both := paired(origin, other)):
            continue
        before, after = (scores.sets[0] for scores in both)
        questions: Questions | None = None
        if condition:
            side = _Side("use", place, condition)
            lost: tuple[Contribution, ...] = (
                Contribution(values_SN=before.values_SN - after.values_SN, groups=before.groups),
            )
        else:
            side = _Side("drop", place, reference)
            dataset = table.study.setting(place.setting).dataset
            match = match_questions(dataset, reference, origin.ids, place.test_set, other.ids)
            questions = match.questions
            before, after, lost = lost_to_shift(before, after, match)
        seeds = both[0].seeds
        sides.setdefault(side, {})[method] = _Sides(
            questions=questions,
            before=Scores(seeds=seeds, sets=(before,)),
            after=Scores(seeds=seeds, sets=(after,)),
            lost=Scores(seeds=seeds, sets=lost),
        )
    return sides


def _losses(table: Table, sides: Mapping[_Side, Mapping[str, _Sides]]) -> Iterator[Loss]:
    for side, by_method in sides.items():
        lost = {method: of_method.lost.by_seed for method, of_method in by_method.items()}
        for method, of_method in by_method.items():
            baseline = table.study.baseline_of(method)
            other = lost.get(baseline, {}) if baseline != method else {}
            change = {seed: points - other[seed] for seed, points in lost[method].items() if seed in other}
            yield Loss(
                quantity=side.quantity,
                place=side.place,
                method=method,
                against=side.against,
                questions=of_method.questions,
                before=Estimate.of(of_method.before.by_seed),
                after=Estimate.of(of_method.after.by_seed),
                lost=Estimate.of(lost[method]),
                change=Estimate.of(change) if change else None,
            )


def _means(table: Table, sides: Mapping[_Side, Mapping[str, _Sides]]) -> Iterator[MeanDifference]:
    """Average the focus method's differences over shot sizes, for every quantity that a claim may need.

    Differences and means over sizes are computed per seed and item. The result is one number per seed and item, whose
    mean has an interval over both.
    """
    study = table.study
    for places in table.along_shots():
        reference = table.reference(places[0])
        is_in_domain = places[0].test_set == reference
        lost: Lost = "use" if is_in_domain else "drop"
        against = USE_CONDITION if is_in_domain else reference
        quantities: tuple[Averaged, ...] = ("accuracy", lost)
        for quantity, other in itertools.product(quantities, study.methods):
            differences: dict[Place, Scores] = {}
            questions: Questions | None = None
            for place in places if other != study.focus else ():
                mine, theirs = (table.accuracy(place, method) for method in (study.focus, other))
                if quantity == lost:
                    by_method = sides.get(_Side(lost, place, against), {})
                    of_both = (by_method.get(method) for method in (study.focus, other))
                    mine, theirs = (side.lost if side else None for side in of_both)
                    questions = questions or (by_method[study.focus].questions if mine else None)
                if mine and theirs and (difference := weighted_sum([(1.0, mine), (-1.0, theirs)])):
                    differences[place] = difference
            mean = weighted_sum([(1.0 / len(differences), difference) for difference in differences.values()])
            if mean is not None:
                yield MeanDifference(
                    quantity=quantity,
                    places=tuple(differences),
                    method=study.focus,
                    against=other,
                    questions=questions,
                    estimate=Estimate.of(mean.by_seed),
                    joint_interval=mean.interval,
                )
