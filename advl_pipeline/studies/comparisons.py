"""From the table of item scores to the records of a result: pure functions, no file is touched.

Shapes: S seeds, N items, K shot sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from advl_pipeline.evaluation.item_contributions import Contribution, joint_interval
from advl_pipeline.evaluation.question_match import Questions
from advl_pipeline.evaluation.statistics import (
    compare,
    holm,
    paired_t_test,
    sign_flip_test,
    slope_per_doubling,
    summarise,
)
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.result import (
    ClaimQuantity,
    Contrast,
    Loss,
    LossQuantity,
    MeanContrast,
    Place,
    Standing,
    TextShare,
    Trend,
)
from advl_pipeline.studies.table import WITH_PICTURE, Scores, Sides, Table, paired, weighted_sum

_RIGHT = 0.5
"""Score from which an item counts as answered rightly: VQA's scores lie between 0 and 1."""

Pairs = Sequence[tuple[str, str]]
"""(treated, baseline) methods."""


def standings(table: Table) -> tuple[Standing, ...]:
    """Accuracy of every method at every place."""
    found = []
    for (place, method, kind), scores in table.rows.items():
        if kind == WITH_PICTURE:
            percents = tuple(scores.by_seed.values())
            found.append(
                Standing(
                    place=place,
                    method=method,
                    seeds=scores.seeds,
                    per_seed=percents,
                    accuracy=summarise(percents),
                    num_items=scores.matrix.shape[1],
                    runs=scores.runs,
                )
            )
    return tuple(found)


def contrasts(table: Table) -> tuple[Contrast, ...]:
    """Every method against its baseline, and the focus method against every other, each family corrected by Holm."""
    study = table.study
    grid = _grid(study)
    focus = [(study.focus, other) for other in study.methods if study.focus in study.methods and other != study.focus]
    return (*_family(table, grid, "grid"), *_family(table, [pair for pair in focus if pair not in grid], "focus"))


def _grid(study: StudyConfig) -> Pairs:
    pairs = ((method, study.baseline_of(method)) for method in study.methods)
    return [pair for pair in pairs if pair[0] != pair[1]]


def _family(table: Table, pairs: Pairs, family: Literal["grid", "focus"]) -> tuple[Contrast, ...]:
    made = []
    for place, (treated, baseline) in itertools.product(table.places, pairs):
        if both := paired(table.accuracy(place, treated), table.accuracy(place, baseline)):
            one, other = both
            comparison = compare(one.matrix, other.matrix, groups=one.groups)
            made.append((place, treated, baseline, one.seeds, comparison))
    by_seed = holm([found.seed_t.p_value if found.seed_t else None for *_, found in made])
    by_item = holm([found.item_test.p_value for *_, found in made])
    return tuple(
        Contrast(
            place=place,
            treated=treated,
            baseline=baseline,
            family=family,
            seeds=seeds,
            comparison=comparison,
            seed_p_adjusted=seed_p,
            item_p_adjusted=item_p,
            family_size=len(made),
        )
        for (place, treated, baseline, seeds, comparison), seed_p, item_p in zip(made, by_seed, by_item, strict=True)
    )


def trends(table: Table) -> tuple[Trend, ...]:
    """How each method's gain over the study's baseline changes with the shots, over seeds that finished all sizes."""
    study = table.study
    # Claims and figures are about the study's baseline, whatever else a method is compared with.
    pairs = [(method, study.baseline) for method in study.methods if method != study.baseline]
    found = []
    for (key, along), (method, baseline) in itertools.product(table.along_shots().items(), pairs):
        both = {place: (table.accuracy(place, method), table.accuracy(place, baseline)) for place in along}
        there = {place: pair for place, pair in both.items() if all(pair)}
        common = paired(*itertools.chain(*there.values()))
        if not common:
            continue
        seeds = tuple(sorted(common[0].seeds, key=study.seeds.index))
        gains = [(one.of(seeds), other.of(seeds)) for one, other in zip(common[::2], common[1::2], strict=True)]
        found.append(_trend(key, method, baseline, tuple(there), gains))
    return tuple(found)


def _trend(
    key: tuple[str, str, str],
    method: str,
    baseline: str,
    places: tuple[Place, ...],
    pairs: Sequence[tuple[Scores, Scores]],
) -> Trend:
    sizes = tuple(place.size for place in places)
    means = [100.0 * (one.matrix.mean(axis=1) - other.matrix.mean(axis=1)) for one, other in pairs]
    gain_SK = np.stack(means, axis=1)
    slopes = tuple(map(float, slope_per_doubling(sizes, gain_SK))) if len(set(sizes)) > 1 else ()
    joint = None
    if slopes:
        # As each item's gains have a slope, theirs is its mean.
        gain_SNK = np.stack([one.matrix - other.matrix for one, other in pairs], axis=2)
        slope_n = slope_per_doubling(sizes, gain_SNK.reshape(-1, len(pairs)))
        joint = joint_interval(
            [Contribution(values_SN=slope_n.reshape(gain_SNK.shape[:2]), groups=pairs[0][0].groups)]
        )
    return Trend(
        setting=key[0],
        metric=key[1],
        test_set=key[2],
        treated=method,
        baseline=baseline,
        sizes=sizes,
        shots=tuple(place.shots for place in places),
        gains=tuple(summarise(gain_S.tolist()) for gain_S in gain_SK.T),
        seeds=pairs[0][0].seeds,
        slope_per_seed=slopes,
        slope=summarise(slopes) if slopes else None,
        slope_test=(paired_t_test(slopes) or sign_flip_test(slopes)) if slopes else None,
        slope_joint=joint,
    )


def losses(table: Table) -> tuple[Loss, ...]:
    """Accuracy lost on each shifted set, and without the true picture, and how that differs from the baseline."""
    found: dict[tuple[LossQuantity, Place, str], dict[str, Sides]] = {}
    for place, method, kind in table.rows:
        reference = table.reference(place)
        is_drop = kind == WITH_PICTURE
        if is_drop and place.test_set == reference:
            continue
        sides = table.drop(place, method) if is_drop else table.use(place, method, kind)
        if sides is not None:
            key: tuple[LossQuantity, Place, str] = ("drop", place, reference) if is_drop else ("use", place, kind)
            found.setdefault(key, {})[method] = sides
    made = []
    for (quantity, place, against), by_method in found.items():
        lost = {method: sides.lost.by_seed for method, sides in by_method.items()}
        for method, sides in by_method.items():
            before, after, difference = (
                summarise(list(side.by_seed.values())) for side in (sides.before, sides.after, sides.lost)
            )
            baseline, change = _change(table.study, method, lost)
            made.append(
                Loss(
                    quantity=quantity,
                    place=place,
                    against=against,
                    questions=sides.questions,
                    method=method,
                    seeds=tuple(lost[method]),
                    per_seed=tuple(lost[method].values()),
                    before=before,
                    after=after,
                    lost=difference,
                    baseline=baseline,
                    change_seeds=tuple(change),
                    change_per_seed=tuple(change.values()),
                    change=summarise(list(change.values())) if change else None,
                )
            )
    return tuple(made)


def mean_contrasts(table: Table) -> tuple[MeanContrast, ...]:
    """The focus method against every other, averaged over shot sizes, in every quantity that a claim may ask for.

    Every difference is taken seed by seed and item by item, and so is the mean over sizes: what is left is one number
    per seed and item, whose mean has an interval over both.
    """
    found: list[MeanContrast] = []
    for places in table.along_shots().values():
        other: ClaimQuantity = "use" if places[0].test_set == table.reference(places[0]) else "drop"
        found += [*_means(table, "accuracy", places), *_means(table, other, places)]
    return tuple(found)


def _means(table: Table, quantity: ClaimQuantity, places: Sequence[Place]) -> Iterator[MeanContrast]:
    def of_method(place: Place, method: str) -> tuple[Scores, Questions | None] | None:
        if quantity == "accuracy":
            accuracy = table.accuracy(place, method)
            return (accuracy, None) if accuracy else None
        sides = table.use(place, method) if quantity == "use" else table.drop(place, method)
        return (sides.lost, sides.questions) if sides else None

    study = table.study
    own = {place: found for place in places if (found := of_method(place, study.focus))}
    for other in study.methods if own else ():
        if other == study.focus:
            continue
        differences = {
            place: difference
            for place, (focus, _) in own.items()
            if (rest := of_method(place, other)) and (difference := weighted_sum([(1.0, focus), (-1.0, rest[0])]))
        }
        mean = weighted_sum([(1.0 / len(differences), difference) for difference in differences.values()])
        if mean is not None:
            yield MeanContrast(
                setting=places[0].setting,
                metric=places[0].metric,
                test_set=places[0].test_set,
                quantity=quantity,
                questions=next(iter(own.values()))[1],
                treated=study.focus,
                baseline=other,
                shots=tuple(place.shots for place in differences),
                seeds=mean.seeds,
                per_seed=tuple(mean.by_seed.values()),
                joint_interval=mean.interval,
            )


def text_shares(table: Table) -> tuple[TextShare, ...]:
    """Split every test set by what a text-only student gets right, and score every other method on both parts."""
    study = table.study
    blind = [name for name in study.methods if study.variant(name).training.get("hide_picture")]
    found = []
    for place, text_only in itertools.product(table.places, blind):
        text = table.accuracy(place, text_only)
        parts = {method: _parts(text, table.accuracy(place, method)) for method in study.methods}
        rest = {method: {seed: of_seed[2] for seed, of_seed in by_seed.items()} for method, by_seed in parts.items()}
        for method, by_seed in parts.items():
            if by_seed and method not in blind:
                share, on_given, on_rest = (summarise(list(column)) for column in zip(*by_seed.values(), strict=True))
                baseline, change = _change(study, method, rest)
                found.append(
                    TextShare(
                        place=place,
                        text_only=text_only,
                        method=method,
                        seeds=tuple(by_seed),
                        share=share,
                        on_given=on_given,
                        on_rest=on_rest,
                        baseline=baseline,
                        change=summarise(list(change.values())) if change else None,
                    )
                )
    return tuple(found)


def _parts(text: Scores | None, scores: Scores | None) -> dict[int, tuple[float, float, float]]:
    """Seed -> percent of items that the text alone gets right, and the accuracy on those and on the others."""
    parts = {}
    if both := paired(text, scores):
        for seed, text_N, score_N in zip(both[0].seeds, both[0].matrix, both[1].matrix, strict=True):
            given_N = text_N >= _RIGHT
            if given_N.any() and not given_N.all():
                given, on_given, on_rest = given_N.mean(), score_N[given_N].mean(), score_N[~given_N].mean()
                parts[seed] = (100.0 * float(given), 100.0 * float(on_given), 100.0 * float(on_rest))
    return parts


def _change(
    study: StudyConfig, method: str, by_method: Mapping[str, Mapping[int, float]]
) -> tuple[str | None, dict[int, float]]:
    """Return a method's baseline, and seed -> what its number is more than that one's; None and {} without."""
    baseline = study.baseline_of(method)
    other = by_method.get(baseline, {}) if baseline != method else {}
    change = {seed: own - other[seed] for seed, own in by_method[method].items() if seed in other}
    return (baseline if change else None), change
