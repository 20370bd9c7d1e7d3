"""One tidy table of item scores, from which every number of a study is computed.

A row is a cell, a test set, a metric, a view of the picture and an item (`ITEM_COLUMNS`). Grouped by method and place
(setting, metric, test set, shots), the rows are matrices of seeds and items (`Table`). The quantities of claims are
matrices computed from these: the use of pictures, the drop under shift, a difference between methods, a mean over
shots. So all get their interval over seeds and items in the same way.

The `quantity` of a `Number` is one of:
  - `accuracy` of a method at a place, in percent; all others are in points;
  - `gain` over `against`, with its tests. Holm's p-values are over a `family`: all methods against their baselines
    ("grid"), or the focus method against every other ("focus");
  - `gain along shots` over the study's baseline, over the seeds that finished all sizes, and its `slope` for each
    doubling of the shots;
  - `drop` from the in-domain test set, which `against` names, to the shifted one of the place, and `use`, the loss
    with a picture replaced as `against` says. Each comes with `... before` and `... after`, and with `... change`,
    the loss minus that of the baseline. If the shifted set asks the same questions in another way (`questions` is
    "same"), all are over the questions in both sets; otherwise each accuracy is over its complete set;
  - `mean accuracy`, `mean drop` and `mean use` of the focus method minus those of `against`, over the shot sizes that
    `over` names.

Shapes: S seeds, N items of a test set, K shot sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.evaluation.shift import Questions, lost_to_shift, match_questions
from advl_pipeline.evaluation.statistics import (
    Contribution,
    FloatArray,
    ItemGroups,
    compare,
    holm,
    item_groups,
    joint_interval,
    mean_per_seed,
    paired_t_test,
    sign_flip_test,
    slope_per_doubling,
    summarise,
)
from advl_pipeline.runs.evaluations import TRUE_PICTURE, Interval
from advl_pipeline.studies.config import FULL, StudyConfig

USE_VIEW = "swapped"
"""View that measures the use of vision."""

ITEM_COLUMNS = (
    "cell", "run", "setting", "method", "shots", "size", "seed", "test_set", "metric", "view", "item", "picture",
    "type", "score",
)  # fmt: skip


class Place(NamedTuple):
    """The place of a comparison. `size` is the number of training questions, `shots` the option that gave it."""

    setting: str
    metric: str
    test_set: str
    size: int
    shots: str

    @property
    def rank(self) -> tuple[int, bool]:
        """Sort key along the shots; "full" comes after an equal size that was given as a number."""
        return self.size, self.shots == FULL


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """One number per seed, as the sum of means over sets of items. Compared scores have their sets in the same order.

    Accuracies have one set; a drop to other questions, or to a part, has more. `ids` are the ids of the items, `runs`
    the runs of the seeds.
    """

    seeds: tuple[int, ...]
    sets: tuple[Contribution, ...]
    ids: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def matrix(self) -> FloatArray:
        """Scores of the first set, (S, N)."""
        return self.sets[0].values_SN

    @property
    def groups(self) -> ItemGroups | None:
        """Groups of items of the first set by picture; None if the evaluation did not write them."""
        return self.sets[0].groups

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> the number, in points."""
        return dict(zip(self.seeds, mean_per_seed(self.sets), strict=True))

    @property
    def interval(self) -> Interval:
        """Interval of the mean over seeds, from resampled seeds and items, in points."""
        return joint_interval(self.sets)

    def of_seeds(self, seeds: Sequence[int]) -> Scores:
        """Return the scores of these seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        sets = tuple(replace(item_set, values_SN=item_set.values_SN[rows]) for item_set in self.sets)
        return Scores(seeds=tuple(seeds), sets=sets)


def paired(*scores: Scores | None) -> tuple[Scores, ...]:
    """Return the scores over their common seeds; empty if there is no such seed, or one of them is missing."""
    complete = [each for each in scores if each is not None]
    if not complete or len(complete) < len(scores):
        return ()
    seeds = tuple(seed for seed in complete[0].seeds if all(seed in side.seeds for side in complete))
    return tuple(side.of_seeds(seeds) for side in complete) if seeds else ()


def weighted_sum(terms: Sequence[tuple[float, Scores]]) -> Scores | None:
    """Return the weighted sum of numbers over the same items and common seeds; None if there is no such seed."""
    common = paired(*(scores for _, scores in terms))
    if not common:
        return None
    sets = []
    for same in zip(*(scores.sets for scores in common), strict=True):
        values = [weight * side.values_SN for (weight, _), side in zip(terms, same, strict=True)]
        sets.append(replace(same[0], values_SN=np.sum(values, axis=0)))
    return Scores(seeds=common[0].seeds, sets=tuple(sets))


class Sides(NamedTuple):
    """A method's accuracy on two sides, and the loss from one to the other; `questions` applies to two test sets."""

    questions: Questions | None
    before: Scores
    after: Scores
    lost: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The scores of a study: (place, method, view of the picture) -> scores."""

    study: StudyConfig
    scores: Mapping[tuple[Place, str, str], Scores]

    @property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(place for place, _, _ in self.scores))

    def along_shots(self) -> list[list[Place]]:
        """Return the places of each (setting, metric, test set), ordered by shots."""
        rows: dict[tuple[str, ...], list[Place]] = {}
        for place in self.places:
            rows.setdefault(place[:3], []).append(place)
        return [sorted(places, key=lambda place: place.rank) for places in rows.values()]

    def reference(self, place: Place) -> str:
        """Return the in-domain test set of a place's setting, which is its first test set."""
        return self.study.setting(place.setting).reference

    def accuracy(self, place: Place, method: str) -> Scores | None:
        return self.scores.get((place, method, TRUE_PICTURE))


def build_table(study: StudyConfig, items: pd.DataFrame) -> Table:
    """Group item scores by place, method and view, all in the item order of the first run.

    Args:
        items: the tidy table.

    Raises:
        ConfigError: two runs were scored on different items, so they cannot be paired.
    """
    scores: dict[tuple[Place, str, str], Scores] = {}
    first: dict[tuple[str, ...], pd.DataFrame] = {}
    by_row: Any = items.groupby([*Place._fields, "method", "view"], sort=False)
    for (*where, method, view), part in by_row:
        place = Place(*where)._replace(size=int(where[3]))
        runs = part.drop_duplicates("seed")
        reference = first.setdefault(place[:3], part[part["seed"] == runs["seed"].iloc[0]])
        values = part.pivot(index="seed", columns="item", values="score").reindex(index=runs["seed"])
        has_pictures = reference["picture"].ne("").any()
        groups = item_groups(reference["picture"].tolist(), reference["type"].tolist()) if has_pictures else None
        _require_same_items(values, reference, runs)
        values_SN = values[reference["item"].tolist()].to_numpy(dtype=np.float64)
        scores[place, method, view] = Scores(
            seeds=tuple(map(int, runs["seed"])),
            runs=tuple(map(str, runs["run"])),
            ids=tuple(reference["item"]),
            sets=(Contribution(values_SN=values_SN, groups=groups),),
        )
    return Table(study=study, scores=scores)


def _require_same_items(values: pd.DataFrame, reference: pd.DataFrame, runs: pd.DataFrame) -> None:
    is_scored = values.notna()
    wanted = pd.Series(values.columns.isin(reference["item"]), index=values.columns)
    wrong = is_scored.ne(wanted, axis=1).any(axis=1)
    if not wrong.any() and wanted.sum() == len(reference):
        return
    run = runs[wrong.to_numpy()].iloc[0] if wrong.any() else runs.iloc[0]
    odd = sorted(set(values.columns[is_scored.loc[run["seed"]]]) ^ set(reference["item"]))
    raise ConfigError(
        f"Two runs were scored on different items of {run['test_set']}, such as {odd[0]!r}.",
        where=f"{reference['run'].iloc[0]} and {run['run']}",
        next_command=advise(
            ["advl", "evaluate", "RUN", "--on", run["test_set"]], note="score both on the same files"
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """One number of a study, in the terms of this module.

    `mean`, `deviation` and `interval` (Student's t) are over seeds; `joint_interval` is over seeds and items.
    """

    quantity: str
    setting: str
    metric: str
    test_set: str
    size: int
    shots: str
    method: str
    against: str | None = None
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    mean: float
    deviation: float | None
    interval: Interval | None
    joint_interval: Interval | None = None
    item_interval: Interval | None = None
    relative_percent: float | None = None
    p_seed: float | None = None
    p_seed_holm: float | None = None
    p_sign_flip: float | None = None
    p_item: float | None = None
    p_item_holm: float | None = None
    family: str | None = None
    family_size: int | None = None
    questions: Questions | None = None
    over: tuple[str, ...] | None = None
    num_items: int | None = None
    runs: tuple[str, ...] = ()


Row = dict[str, Any]

Losses = dict[tuple[str, Place, str], dict[str, Sides]]


def numbers_of(table: Table) -> tuple[Number, ...]:
    """Return every number of a study."""
    losses = _losses(table)
    return (
        *_accuracies(table), *_gains(table), *_trends(table), *_loss_rows(table, losses), *_means(table, losses)
    )  # fmt: skip


def _number(quantity: str, place: Place, method: str, by_seed: Mapping[int, float], **more: Any) -> Number:
    summary = zip(("mean", "deviation", "interval"), summarise(list(by_seed.values())), strict=True)
    by: Row = {"seeds": tuple(by_seed), "per_seed": tuple(by_seed.values())}
    return Number(quantity=quantity, method=method, **(place._asdict() | by | dict(summary) | more))


def _accuracies(table: Table) -> Iterator[Number]:
    for (place, method, view), scores in table.scores.items():
        if view == TRUE_PICTURE:
            num_items = scores.matrix.shape[1]
            yield _number("accuracy", place, method, scores.by_seed, num_items=num_items, runs=scores.runs)


def _gains(table: Table) -> Iterator[Number]:
    study = table.study
    grid = [(method, study.baseline_of(method)) for method in study.methods if study.baseline_of(method) != method]
    focus = [(study.focus, other) for other in study.methods if study.focus in study.methods and other != study.focus]
    for family, pairs in (("grid", grid), ("focus", [pair for pair in focus if pair not in grid])):
        numbers = []
        for place, (treated, baseline) in itertools.product(table.places, pairs):
            if both := paired(table.accuracy(place, treated), table.accuracy(place, baseline)):
                left, other = both
                compared = compare(left.matrix, other.matrix, groups=left.groups)
                by_seed = dict(zip(left.seeds, compared["per_seed"], strict=True))
                numbers.append(_number("gain", place, treated, by_seed, against=baseline, family=family, **compared))
        of_seeds, of_items = (holm([getattr(number, name) for number in numbers]) for name in ("p_seed", "p_item"))
        for number, p_seed, p_item in zip(numbers, of_seeds, of_items, strict=True):
            yield replace(number, p_seed_holm=p_seed, p_item_holm=p_item, family_size=len(numbers))


def _trends(table: Table) -> Iterator[Number]:
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
        for place, gain_S in zip(places, gains, strict=True):
            by_seed = dict(zip(seeds, gain_S.tolist(), strict=True))
            yield _number("gain along shots", place, method, by_seed, against=study.baseline)
        sizes = [place.size for place in places]
        if len(set(sizes)) > 1:
            slopes = slope_per_doubling(sizes, np.stack(gains, axis=1)).tolist()
            p_value = paired_t_test(slopes)
            p_value = sign_flip_test(slopes) if p_value is None else p_value
            # The slope is linear in the gains, so it is the mean of the slopes of the items.
            gain_SNK = np.stack([left.matrix - other.matrix for left, other in pairs], axis=2)
            slope_SN = slope_per_doubling(sizes, gain_SNK.reshape(-1, len(pairs))).reshape(gain_SNK.shape[:2])
            joint = joint_interval([Contribution(values_SN=slope_SN, groups=pairs[0][0].groups)])
            by_seed = dict(zip(seeds, slopes, strict=True))
            yield _number(
                "slope", places[-1], method, by_seed,
                against=study.baseline, over=_labels(places), joint_interval=joint, p_seed=p_value,
            )  # fmt: skip


def _losses(table: Table) -> Losses:
    """Return the losses of each method with another picture or none, and on each shifted set.

    If the same questions are asked in another way, both accuracies are over these; else each is over its full set.
    """
    losses: Losses = {}
    for (place, method, view), other in table.scores.items():
        reference = table.reference(place)
        origin = table.accuracy(place if view else place._replace(test_set=reference), method)
        if origin is other or origin is None or not (both := paired(origin, other)):
            continue
        before, after = (side.sets[0] for side in both)
        questions: Questions | None = None
        if view:
            quantity, against = "use", view
            lost: tuple[Contribution, ...] = (
                Contribution(values_SN=before.values_SN - after.values_SN, groups=before.groups),
            )
        else:
            quantity, against = "drop", reference
            dataset = table.study.setting(place.setting).dataset
            match = match_questions(dataset, reference, origin.ids, place.test_set, other.ids)
            questions = match.questions
            before, after, lost = lost_to_shift(before, after, match)
        sides = (Scores(seeds=both[0].seeds, sets=sets) for sets in ((before,), (after,), lost))
        losses.setdefault((quantity, place, against), {})[method] = Sides(questions, *sides)
    return losses


def _loss_rows(table: Table, losses: Losses) -> Iterator[Number]:
    for (quantity, place, against), by_method in losses.items():
        lost = {method: sides.lost.by_seed for method, sides in by_method.items()}
        for method, sides in by_method.items():
            about = {"against": against, "questions": sides.questions}
            yield _number(quantity, place, method, lost[method], **about)
            yield _number(f"{quantity} before", place, method, sides.before.by_seed, **about)
            yield _number(f"{quantity} after", place, method, sides.after.by_seed, **about)
            baseline = table.study.baseline_of(method)
            other = lost.get(baseline, {}) if baseline != method else {}
            if change := {seed: points - other[seed] for seed, points in lost[method].items() if seed in other}:
                yield _number(f"{quantity} change", place, method, change, **about)


def _means(table: Table, losses: Losses) -> Iterator[Number]:
    """Average the focus method's differences over shot sizes, for every quantity that a claim may need.

    Differences and means over sizes are computed per seed and item. The result is one number per seed and item, whose
    mean has an interval over both.
    """
    study = table.study
    for places in table.along_shots():
        reference = table.reference(places[0])
        lost, against = ("use", USE_VIEW) if places[0].test_set == reference else ("drop", reference)
        for quantity, other in itertools.product(("accuracy", lost), study.methods):
            differences: dict[Place, Scores] = {}
            questions: Questions | None = None
            for place in places if other != study.focus else ():
                mine, theirs = (table.accuracy(place, method) for method in (study.focus, other))
                if quantity == lost:
                    sides = losses.get((lost, place, against), {})
                    of_both = (sides.get(method) for method in (study.focus, other))
                    mine, theirs = (side.lost if side else None for side in of_both)
                    questions = questions or (sides[study.focus].questions if mine else None)
                if mine and theirs and (difference := weighted_sum([(1.0, mine), (-1.0, theirs)])):
                    differences[place] = difference
            mean = weighted_sum([(1.0 / len(differences), difference) for difference in differences.values()])
            if mean is not None:
                yield _number(
                    f"mean {quantity}", places[0], study.focus, mean.by_seed,
                    against=other, joint_interval=mean.interval, over=_labels(differences), questions=questions,
                )  # fmt: skip


def _labels(places: Sequence[Place] | Mapping[Place, object]) -> tuple[str, ...]:
    return tuple(place.shots for place in places)
