"""From the table of item scores to the records of a result: pure functions, no file is touched.

Shapes: S seeds, N items, K shot sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from advl_pipeline.evaluation.item_contributions import Contribution, joint_interval
from advl_pipeline.evaluation.question_match import Questions
from advl_pipeline.evaluation.statistics import (
    Interval,
    Spread,
    compare,
    holm,
    paired_t_test,
    sign_flip_test,
    slope_per_doubling,
    summarise,
)
from advl_pipeline.studies.config import Setting, StudyConfig
from advl_pipeline.studies.quantities import ItemQuantity, Sides, accuracy_of, drop_of, use_of, weighted_sum
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
from advl_pipeline.studies.scores import WITH_PICTURE, Series, Table, common_seeds

_RIGHT = 0.5
"""Score from which an item counts as answered rightly: VQA's scores lie between 0 and 1."""

USE_KIND = "swapped"
"""How pictures are spoilt where the use of vision is judged."""


def standings(table: Table) -> tuple[Standing, ...]:
    """Accuracy of every method at every place."""
    return tuple(
        Standing(
            place=place,
            method=method,
            seeds=series.seeds,
            per_seed=series.percents,
            accuracy=summarise(series.percents),
            num_items=series.items_SN.shape[1],
            runs=series.runs,
        )
        for (place, method, kind), series in table.items()
        if kind == WITH_PICTURE
    )


def contrasts(study: StudyConfig, table: Table) -> tuple[Contrast, ...]:
    """Every method against its baseline, and the focus method against every other, each family corrected by Holm."""
    places = list(dict.fromkeys(place for place, _, _ in table))
    grid = [(method, study.baseline_of(method)) for method in study.methods]
    focus = [(study.focus, method) for method in study.methods if study.focus in study.methods]
    return (
        *_family(table, places, [pair for pair in grid if pair[0] != pair[1]], "grid"),
        *_family(table, places, [pair for pair in focus if pair[0] != pair[1] and pair not in grid], "focus"),
    )


def _family(
    table: Table, places: Sequence[Place], pairs: Sequence[tuple[str, str]], family: Literal["grid", "focus"]
) -> tuple[Contrast, ...]:
    found = []
    for place in places:
        for treated, baseline in pairs:
            one = table.get((place, treated, WITH_PICTURE))
            other = table.get((place, baseline, WITH_PICTURE))
            seeds = common_seeds(one, other) if one and other else ()
            if one and other and seeds:
                found.append(
                    Contrast(
                        place=place,
                        treated=treated,
                        baseline=baseline,
                        family=family,
                        seeds=seeds,
                        comparison=compare(one.of(seeds), other.of(seeds), groups=one.groups),
                        seed_p_adjusted=None,
                        item_p_adjusted=None,
                        family_size=0,
                    )
                )
    by_seed = holm([item.comparison.seed_t.p_value if item.comparison.seed_t else None for item in found])
    by_item = holm([item.comparison.item_test.p_value for item in found])
    return tuple(
        dataclasses.replace(item, seed_p_adjusted=seed_p, item_p_adjusted=item_p, family_size=len(found))
        for item, seed_p, item_p in zip(found, by_seed, by_item, strict=True)
    )


def trends(study: StudyConfig, table: Table) -> tuple[Trend, ...]:
    """How each method's gain over its baseline changes with the shots, over the seeds that finished all sizes."""
    places = list(dict.fromkeys(place for place, _, _ in table))
    groups = list(dict.fromkeys((place.setting, place.metric, place.test_set) for place in places))
    found = []
    for setting, metric, test_set in groups:
        along = sorted(
            (p for p in places if (p.setting, p.metric, p.test_set) == (setting, metric, test_set)),
            key=lambda place: place.rank,
        )
        for method in study.methods:
            baseline = study.baseline_of(method)
            if method == baseline:
                continue
            pairs = [
                (place, one, other)
                for place in along
                if (one := table.get((place, method, WITH_PICTURE)))
                and (other := table.get((place, baseline, WITH_PICTURE)))
            ]
            seeds = tuple(
                seed
                for seed in study.seeds
                if pairs and all(seed in common_seeds(one, other) for _, one, other in pairs)
            )
            if not seeds:
                continue
            gain_SK = np.stack(
                [100.0 * (one.of(seeds).mean(axis=1) - other.of(seeds).mean(axis=1)) for _, one, other in pairs],
                axis=1,
            )
            sizes = tuple(place.size for place, _, _ in pairs)
            slopes = tuple(map(float, slope_per_doubling(sizes, gain_SK))) if len(set(sizes)) > 1 else ()
            found.append(
                Trend(
                    setting=setting,
                    metric=metric,
                    test_set=test_set,
                    treated=method,
                    baseline=baseline,
                    sizes=sizes,
                    gains=tuple(summarise(gain_SK[:, k].tolist()) for k in range(len(sizes))),
                    seeds=seeds,
                    slope_per_seed=slopes,
                    slope=summarise(slopes) if slopes else None,
                    slope_test=(paired_t_test(slopes) or sign_flip_test(slopes)) if slopes else None,
                    slope_joint=_slope_interval(pairs, seeds) if slopes else None,
                )
            )
    return tuple(found)


def _slope_interval(pairs: Sequence[tuple[Place, Series, Series]], seeds: Sequence[int]) -> Interval:
    """Interval over seeds and items of the slope: as each item's gains have a slope, theirs is its mean."""
    gain_SNK = np.stack([one.of(seeds) - other.of(seeds) for _, one, other in pairs], axis=2)
    slope_n = slope_per_doubling([place.size for place, _, _ in pairs], gain_SNK.reshape(-1, len(pairs)))
    return joint_interval([Contribution(values_SN=slope_n.reshape(gain_SNK.shape[:2]), groups=pairs[0][1].groups)])


def losses(study: StudyConfig, table: Table) -> tuple[Loss, ...]:
    """Accuracy lost on each shifted test set, and without the true picture, and how that differs from the baseline.

    The first test set of a setting is the in-domain one.
    """
    settings = {setting.name: setting for setting in study.settings}
    found: dict[tuple[LossQuantity, Place, str], dict[str, Sides]] = {}
    for place, method, kind in table:
        setting = settings[place.setting]
        reference = setting.test_sets[0]
        if kind != WITH_PICTURE:
            sides = use_of(table, place, method, kind=kind)
            key: tuple[LossQuantity, Place, str] = ("use", place, kind)
        elif place.test_set != reference:
            sides = drop_of(table, place, method, reference=reference, dataset=setting.dataset)
            key = ("drop", place, reference)
        else:
            continue
        if sides is not None:
            found.setdefault(key, {})[method] = sides
    return tuple(
        _loss(study, key, method, {name: sides.lost.by_seed for name, sides in by_method.items()}, by_method[method])
        for key, by_method in found.items()
        for method in by_method
    )


def _loss(
    study: StudyConfig,
    key: tuple[LossQuantity, Place, str],
    method: str,
    lost: Mapping[str, dict[int, float]],
    sides: Sides,
) -> Loss:
    change = _change(study, method, lost[method], lost.get)
    before, after, difference = (
        summarise(list(side.by_seed.values())) for side in (sides.before, sides.after, sides.lost)
    )
    return Loss(
        quantity=key[0],
        place=key[1],
        against=key[2],
        questions=sides.questions,
        method=method,
        seeds=tuple(lost[method]),
        per_seed=tuple(lost[method].values()),
        before=before,
        after=after,
        lost=difference,
        baseline=change.baseline,
        change_seeds=change.seeds,
        change_per_seed=change.per_seed,
        change=change.spread,
    )


def mean_contrasts(study: StudyConfig, table: Table) -> tuple[MeanContrast, ...]:
    """The focus method against every other, averaged over shot sizes, in every quantity that a claim may ask for.

    Every difference is taken seed by seed and item by item, and so is the mean over sizes: what is left is one number
    per seed and item, whose mean has an interval over both.
    """
    along: dict[tuple[str, str, str], list[Place]] = {}
    for place in dict.fromkeys(place for place, _, _ in table):
        along.setdefault((place.setting, place.metric, place.test_set), []).append(place)
    settings = {setting.name: setting for setting in study.settings}
    found: list[MeanContrast] = []
    for (name, _, test_set), places in along.items():
        setting = settings[name]
        asked: tuple[ClaimQuantity, ...] = ("accuracy", "use" if test_set == setting.test_sets[0] else "drop")
        for quantity in asked:
            of_method = partial(_quantity, table, setting, quantity)
            found += _mean_contrasts(study, quantity, of_method, sorted(places, key=lambda place: place.rank))
    return tuple(found)


def _quantity(
    table: Table, setting: Setting, quantity: ClaimQuantity, place: Place, method: str
) -> tuple[ItemQuantity, Questions | None] | None:
    if quantity == "accuracy":
        accuracy = accuracy_of(table, place, method)
        return (accuracy, None) if accuracy else None
    sides = (
        use_of(table, place, method, kind=USE_KIND)
        if quantity == "use"
        else drop_of(table, place, method, reference=setting.test_sets[0], dataset=setting.dataset)
    )
    return (sides.lost, sides.questions) if sides else None


def _mean_contrasts(
    study: StudyConfig,
    quantity: ClaimQuantity,
    of_method: Callable[[Place, str], tuple[ItemQuantity, Questions | None] | None],
    places: Sequence[Place],
) -> Iterator[MeanContrast]:
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
        if mean is None:
            continue
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


def text_shares(study: StudyConfig, table: Table) -> tuple[TextShare, ...]:
    """Split every test set by what a text-only student gets right, and score every other method on both parts."""
    blind = [name for name in study.methods if study.variant(name).training.get("hide_picture")]
    found = []
    for place in dict.fromkeys(place for place, _, _ in table):
        for text_only in blind:
            text = table.get((place, text_only, WITH_PICTURE))
            for method in study.methods:
                series = table.get((place, method, WITH_PICTURE))
                if text is None or series is None or method in blind:
                    continue
                parts = _parts(text, series)
                if not parts:
                    continue
                rest = {seed: on_rest for seed, (_, _, on_rest) in parts.items()}
                change = _change(study, method, rest, partial(_rest_of, table, place, text))
                found.append(
                    TextShare(
                        place=place,
                        text_only=text_only,
                        method=method,
                        seeds=tuple(parts),
                        share=summarise([share for share, _, _ in parts.values()]),
                        on_given=summarise([on_given for _, on_given, _ in parts.values()]),
                        on_rest=summarise(list(rest.values())),
                        baseline=change.baseline,
                        change=change.spread,
                    )
                )
    return tuple(found)


def _rest_of(table: Table, place: Place, text: Series, method: str) -> dict[int, float]:
    """Seed -> accuracy of a method on the items that the text alone gets wrong."""
    series = table.get((place, method, WITH_PICTURE))
    return {} if series is None else {seed: on_rest for seed, (_, _, on_rest) in _parts(text, series).items()}


def _parts(text: Series, series: Series) -> dict[int, tuple[float, float, float]]:
    """Seed -> percent of items that the text alone gets right, and the accuracy on those and on the others."""
    parts = {}
    for seed in common_seeds(text, series):
        (given_N,), (score_N,) = text.of([seed]) >= _RIGHT, series.of([seed])
        if given_N.any() and not given_N.all():
            parts[seed] = (
                100.0 * float(given_N.mean()),
                100.0 * float(score_N[given_N].mean()),
                100.0 * float(score_N[~given_N].mean()),
            )
    return parts


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """What a method's quantity is more than its baseline's, seed by seed; empty where there is nothing to compare."""

    baseline: str | None = None
    seeds: tuple[int, ...] = ()
    per_seed: tuple[float, ...] = ()
    spread: Spread | None = None


def _change(
    study: StudyConfig, method: str, own: Mapping[int, float], of_method: Callable[[str], Mapping[int, float] | None]
) -> _Change:
    baseline = study.baseline_of(method)
    other = (of_method(baseline) if baseline != method else None) or {}
    seeds = tuple(seed for seed in own if seed in other)
    if not seeds:
        return _Change()
    per_seed = tuple(own[seed] - other[seed] for seed in seeds)
    return _Change(baseline=baseline, seeds=seeds, per_seed=per_seed, spread=summarise(per_seed))
