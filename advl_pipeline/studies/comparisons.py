"""From the table of item scores to the records of a result: pure functions, no file is touched.

Shapes: S seeds, N items, K shot sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from advl_pipeline.evaluation.item_contributions import Contribution, joint_interval
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
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.quantities import Drop, drop_of, use_of
from advl_pipeline.studies.result import Contrast, Place, ShiftDrop, Standing, TextShare, Trend, VisionUse
from advl_pipeline.studies.scores import WITH_PICTURE, Series, Table, common_seeds

_RIGHT = 0.5
"""Score from which an item counts as answered rightly: VQA's scores lie between 0 and 1."""


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


def shift_drops(study: StudyConfig, table: Table) -> tuple[ShiftDrop, ...]:
    """Accuracy lost on each shifted test set; the first test set of a setting is the in-domain one."""
    settings = {setting.name: setting for setting in study.settings}
    drops: dict[Place, dict[str, Drop]] = {}
    for place, method, kind in table:
        setting = settings[place.setting]
        if kind != WITH_PICTURE or place.test_set == setting.test_sets[0]:
            continue
        drop = drop_of(table, place, method, reference=setting.test_sets[0], dataset=setting.dataset)
        if drop is not None:
            drops.setdefault(place, {})[method] = drop
    found = []
    for place, by_method in drops.items():
        lost = {method: drop.lost.by_seed for method, drop in by_method.items()}
        for method, drop in by_method.items():
            change = _change(study, method, lost[method], lost.get)
            found.append(
                ShiftDrop(
                    place=place,
                    reference=settings[place.setting].test_sets[0],
                    questions=drop.questions,
                    method=method,
                    seeds=tuple(lost[method]),
                    per_seed=tuple(lost[method].values()),
                    before=summarise(list(drop.before.by_seed.values())),
                    after=summarise(list(drop.after.by_seed.values())),
                    drop=summarise(list(lost[method].values())),
                    baseline=change.baseline,
                    change_seeds=change.seeds,
                    change_per_seed=change.per_seed,
                    change=change.spread,
                )
            )
    return tuple(found)


def vision_use(study: StudyConfig, table: Table) -> tuple[VisionUse, ...]:
    """How much accuracy hangs on the picture, and how that differs from the baseline."""
    lost: dict[tuple[Place, str], dict[str, dict[int, float]]] = {}
    for place, method, kind in table:
        if kind != WITH_PICTURE and (use := use_of(table, place, method, kind=kind)):
            lost.setdefault((place, kind), {})[method] = use.by_seed
    found = []
    for (place, kind), by_method in lost.items():
        for method, by_seed in by_method.items():
            change = _change(study, method, by_seed, by_method.get)
            found.append(
                VisionUse(
                    place=place,
                    kind=kind,
                    method=method,
                    seeds=tuple(by_seed),
                    accuracy=summarise(table[place, method, WITH_PICTURE].percents),
                    spoilt=summarise(table[place, method, kind].percents),
                    use=summarise(list(by_seed.values())),
                    baseline=change.baseline,
                    change_seeds=change.seeds,
                    change_per_seed=change.per_seed,
                    change=change.spread,
                )
            )
    return tuple(found)


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
