"""One tidy table of item scores, from which every number of a study is computed (`numbers.py`).

A row is a run, a test set, a metric, a condition of the picture and an item (`ITEM_COLUMNS`). Grouped by method and
place (setting, metric, test set, shots), the rows are matrices of seeds and items (`Table`). The quantities of claims
are matrices computed from these: the use of pictures, the drop under shift, a difference between methods, a mean over
shots. So all get their interval over seeds and items in the same way.

Shapes: S seeds, N items of a test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.evaluation.statistics import (
    Contribution,
    FloatArray,
    ItemGroups,
    item_groups,
    joint_interval,
    mean_per_seed,
)
from advl_pipeline.runs.evaluations import TRUE_PICTURE, Interval
from advl_pipeline.studies.config import FULL, StudyConfig

USE_CONDITION = "swapped"
"""Condition that measures the use of vision."""

ITEM_COLUMNS = (
    "run_id", "run", "setting", "method", "shots", "size", "seed", "test_set", "metric", "condition", "item",
    "picture", "type", "score",
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The scores of a study: (place, method, condition of the picture) -> scores."""

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
    """Group item scores by place, method and condition, all in the item order of the first run.

    Args:
        items: the tidy table.

    Raises:
        ConfigError: two runs were scored on different items, so they cannot be paired.
    """
    scores: dict[tuple[Place, str, str], Scores] = {}
    first: dict[tuple[str, ...], pd.DataFrame] = {}
    by_row: Any = items.groupby([*Place._fields, "method", "condition"], sort=False)
    for (*where, method, condition), part in by_row:
        place = Place(*where)._replace(size=int(where[3]))
        runs = part.drop_duplicates("seed")
        reference = first.setdefault(place[:3], part[part["seed"] == runs["seed"].iloc[0]])
        values = part.pivot(index="seed", columns="item", values="score").reindex(index=runs["seed"])
        has_pictures = reference["picture"].ne("").any()
        groups = item_groups(reference["picture"].tolist(), reference["type"].tolist()) if has_pictures else None
        _require_same_items(values, reference, runs)
        values_SN = values[reference["item"].tolist()].to_numpy(dtype=np.float64)
        scores[place, method, condition] = Scores(
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
        next_command=f"evaluate both runs on the same files of {run['test_set']}, with the same --num-questions",
    )
