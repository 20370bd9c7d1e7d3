"""From the table of item scores to the numbers of a study: pure functions, no file is touched.

All numbers are rows of one frame with `COLUMNS`. What a row is of, `quantity` says:
  - `accuracy` of a method at a place, in percent; all others are in points;
  - `gain` over `against`, with its tests. Holm's p are over a `family`: all methods against their baselines ("grid"),
    or the focus method against every other ("focus");
  - `gain along shots` over the study's baseline, over the seeds that finished all sizes, and its `slope` for each
    doubling of the shots;
  - `drop` from the in-domain test set, which `against` names, to the shifted one of the place, and `use`, what is
    lost with a picture that is spoilt as `against` says. Beside each stand `... before` and `... after`, and
    `... change`, which is what is lost more than the baseline loses. Where the shifted set asks the same questions
    otherwise (`questions` is "same"), all are over the questions that both hold; else each accuracy is over its whole
    set;
  - `mean accuracy`, `mean drop` and `mean use` of the focus method minus those of `against`, over the shot sizes that
    `over` names.

Shapes: S seeds, N items, K shot sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from advl_pipeline.evaluation.shift import Questions
from advl_pipeline.evaluation.statistics import (
    Contribution,
    compare,
    holm,
    joint_interval,
    paired_t_test,
    sign_flip_test,
    slope_per_doubling,
    summarise,
)
from advl_pipeline.studies.table import USE_VIEW, WITH_PICTURE, Place, Scores, Sides, Table, paired, weighted_sum

COLUMNS = (
    "quantity", *Place._fields, "method", "against", "seeds", "per_seed", "mean", "deviation", "interval",
    "joint_interval", "item_interval", "relative_percent", "p_seed", "p_seed_holm", "p_sign_flip", "p_item",
    "p_item_holm", "family", "family_size", "questions", "over", "num_items", "runs",
)  # fmt: skip
"""`mean`, `deviation` and `interval` (Student's t) are over seeds; `joint_interval` is over seeds and items."""

Row = dict[str, Any]


def numbers_of(table: Table) -> pd.DataFrame:
    """Return every number of a study, a row each."""
    makers = (_accuracies, _gains, _trends, _losses, _means)
    rows = [row for make in makers for row in make(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _number(quantity: str, place: Place, method: str, by_seed: Mapping[int, float], **more: object) -> Row:
    spread = summarise(list(by_seed.values()))
    told = {"mean": spread.mean, "deviation": spread.deviation, "interval": spread.interval}
    own = {"quantity": quantity, "method": method, "seeds": tuple(by_seed), "per_seed": tuple(by_seed.values())}
    return dict.fromkeys(COLUMNS) | place._asdict() | own | told | more


def _accuracies(table: Table) -> Iterator[Row]:
    for (place, method, view), scores in table.scores.items():
        if view == WITH_PICTURE:
            num_items = scores.matrix.shape[1]
            yield _number("accuracy", place, method, scores.by_seed, num_items=num_items, runs=scores.runs)


def _gains(table: Table) -> Iterator[Row]:
    study = table.study
    grid = [(method, study.baseline_of(method)) for method in study.methods if study.baseline_of(method) != method]
    focus = [(study.focus, other) for other in study.methods if study.focus in study.methods and other != study.focus]
    for family, pairs in (("grid", grid), ("focus", [pair for pair in focus if pair not in grid])):
        found = []
        for place, (treated, baseline) in itertools.product(table.places, pairs):
            if both := paired(table.accuracy(place, treated), table.accuracy(place, baseline)):
                one, other = both
                compared = compare(one.matrix, other.matrix, groups=one.groups)
                by_seed = dict(zip(one.seeds, compared.per_seed, strict=True))
                row = _number("gain", place, treated, by_seed, against=baseline, family=family)
                found.append(row | {item.name: getattr(compared, item.name) for item in dataclasses.fields(compared)})
        for name in ("p_seed", "p_item"):
            for row, adjusted in zip(found, holm([row[name] for row in found]), strict=True):
                row[f"{name}_holm"], row["family_size"] = adjusted, len(found)
        yield from found


def _trends(table: Table) -> Iterator[Row]:
    study = table.study
    # Claims and figures are about the study's baseline, whatever else a method is compared with.
    methods = [method for method in study.methods if method != study.baseline]
    for along, method in itertools.product(table.along_shots(), methods):
        both = {place: (table.accuracy(place, method), table.accuracy(place, study.baseline)) for place in along}
        places = [place for place, pair in both.items() if all(pair)]
        common = paired(*itertools.chain(*(both[place] for place in places)))
        if not common:
            continue
        seeds = tuple(sorted(common[0].seeds, key=study.seeds.index))
        pairs = [(one.of(seeds), other.of(seeds)) for one, other in zip(common[::2], common[1::2], strict=True)]
        gains = [100.0 * (one.matrix.mean(axis=1) - other.matrix.mean(axis=1)) for one, other in pairs]
        for place, gain_S in zip(places, gains, strict=True):
            by_seed = dict(zip(seeds, gain_S.tolist(), strict=True))
            yield _number("gain along shots", place, method, by_seed, against=study.baseline)
        sizes = [place.size for place in places]
        if len(set(sizes)) > 1:
            slopes = slope_per_doubling(sizes, np.stack(gains, axis=1)).tolist()
            p_value = paired_t_test(slopes)
            p_value = sign_flip_test(slopes).p_value if p_value is None else p_value
            # As each item's gains have a slope, theirs is its mean.
            gain_SNK = np.stack([one.matrix - other.matrix for one, other in pairs], axis=2)
            slope_SN = slope_per_doubling(sizes, gain_SNK.reshape(-1, len(pairs))).reshape(gain_SNK.shape[:2])
            joint = joint_interval([Contribution(values_SN=slope_SN, groups=pairs[0][0].groups)])
            by_seed = dict(zip(seeds, slopes, strict=True))
            yield _number(
                "slope", places[-1], method, by_seed,
                against=study.baseline, over=_labels(places), joint_interval=joint, p_seed=p_value,
            )  # fmt: skip


def _losses(table: Table) -> Iterator[Row]:
    found: dict[tuple[str, Place, str], dict[str, Sides]] = {}
    for place, method, view in table.scores:
        reference = table.reference(place)
        if view == WITH_PICTURE and place.test_set == reference:
            continue
        quantity, against = ("drop", reference) if view == WITH_PICTURE else ("use", view)
        if (sides := table.sides(place, method, view)) is not None:
            found.setdefault((quantity, place, against), {})[method] = sides
    for (quantity, place, against), by_method in found.items():
        lost = {method: sides.lost.by_seed for method, sides in by_method.items()}
        for method, sides in by_method.items():
            told = {"against": against, "questions": sides.questions}
            yield _number(quantity, place, method, lost[method], **told)
            yield _number(f"{quantity} before", place, method, sides.before.by_seed, **told)
            yield _number(f"{quantity} after", place, method, sides.after.by_seed, **told)
            baseline = table.study.baseline_of(method)
            other = lost.get(baseline, {}) if baseline != method else {}
            if change := {seed: own - other[seed] for seed, own in lost[method].items() if seed in other}:
                yield _number(f"{quantity} change", place, method, change, **told)


def _means(table: Table) -> Iterator[Row]:
    """Average the focus method's differences over shot sizes, in every quantity that a claim may ask for.

    Every difference is taken seed by seed and item by item, and so is the mean over sizes: what is left is one number
    per seed and item, whose mean has an interval over both.
    """
    study = table.study
    for places in table.along_shots():
        shifted = places[0].test_set != table.reference(places[0])
        for quantity in ("accuracy", "drop" if shifted else "use"):
            own = {place: it for place in places if (it := _quantity(table, quantity, place, study.focus))}
            for other in (name for name in study.methods if own and name != study.focus):
                differences = {
                    place: difference
                    for place, (scores, _) in own.items()
                    if (rest := _quantity(table, quantity, place, other))
                    and (difference := weighted_sum([(1.0, scores), (-1.0, rest[0])]))
                }
                mean = weighted_sum([(1.0 / len(differences), difference) for difference in differences.values()])
                if mean is not None:
                    yield _number(
                        f"mean {quantity}", places[0], study.focus, mean.by_seed,
                        against=other, joint_interval=mean.interval, over=_labels(differences),
                        questions=next(iter(own.values()))[1],
                    )  # fmt: skip


def _quantity(table: Table, quantity: str, place: Place, method: str) -> tuple[Scores, Questions | None] | None:
    if quantity == "accuracy":
        scores = table.accuracy(place, method)
        return (scores, None) if scores else None
    sides = table.sides(place, method, USE_VIEW if quantity == "use" else WITH_PICTURE)
    return (sides.lost, sides.questions) if sides else None


def _labels(places: Sequence[Place] | Mapping[Place, object]) -> tuple[str, ...]:
    return tuple(place.shots for place in places)
