"""Item scores of a whole grid, paired: the table that every comparison of a study is computed from.

Shapes: S seeds, N items of a test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import ConfigError
from advl_pipeline.evaluation.statistics import ItemGroups, item_groups
from advl_pipeline.runs.names import evaluation_file, is_finished
from advl_pipeline.runs.reader import Evaluation, read_evaluation
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.plan import Cell, Plan
from advl_pipeline.studies.result import Place

FloatArray = npt.NDArray[np.float64]
WITH_PICTURE = ""
"""Kind of the scores with the true picture; other kinds name how it was spoilt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One method at one place: item scores of each finished seed, in the order of the seeds.

    `ids` names the items. `groups` says which show one picture; None where the evaluation did not write it.
    """

    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    ids: tuple[str, ...]
    items_SN: FloatArray
    groups: ItemGroups | None

    @property
    def percents(self) -> tuple[float, ...]:
        return tuple(float(value) for value in 100.0 * self.items_SN.mean(axis=1))

    def of(self, seeds: Sequence[int]) -> FloatArray:
        """Rows of these seeds."""
        return self.items_SN[[self.seeds.index(seed) for seed in seeds]]


Table = Mapping[tuple[Place, str, str], Series]
"""(place, method, kind of picture) -> series."""


def common_seeds(one: Series, other: Series) -> tuple[int, ...]:
    """Seeds that both have finished."""
    return tuple(seed for seed in one.seeds if seed in other.seeds)


def place_of(cell: Cell, test_set: str, metric: str, sizes: Mapping[tuple[str, int | None], int]) -> Place:
    """Return where a cell's accuracy stands; `sizes` is (setting, shots) -> number of training questions."""
    size = sizes[cell.setting, cell.shots]
    return Place(setting=cell.setting, metric=metric, test_set=test_set, size=size, shots=cell.shots)


def build_table(
    plan: Plan, sizes: Mapping[tuple[str, int | None], int], evaluations: Mapping[tuple[str, str], Evaluation]
) -> Table:
    """Arrange item scores by place, method and kind, all in one order of items.

    Args:
        plan: the grid.
        sizes: (setting, shots) -> number of training questions.
        evaluations: (cell id, test set) -> what was stored.

    Raises:
        ConfigError: two runs were scored on different items, so that nothing can be paired.
    """
    rows: dict[tuple[Place, str, str], list[tuple[int, str, FloatArray]]] = {}
    orders: dict[tuple[str, str, str], tuple[tuple[str, ...], str]] = {}
    groups: dict[tuple[str, str, str], ItemGroups | None] = {}
    for cell in plan.cells:
        for test_set in cell.test_sets:
            evaluation = evaluations.get((cell.cell_id, test_set))
            if evaluation is None:
                continue
            for metric in _metrics(plan.study, cell):
                if metric not in evaluation.items:
                    raise ConfigError(
                        f"A run has no item scores of {metric}.",
                        where=str(evaluation_file(cell.run, test_set, ".npz")),
                        why=f"it has {', '.join(sorted(evaluation.items)) or 'none'}",
                        next_command=f"advl evaluate --run {cell.run} --on {test_set}",
                    )
                key = (cell.setting, test_set, metric)
                order = _order(orders, key, evaluation.ids[metric], cell.run)
                # The first run read gives the order of the items, and with it their groups.
                named = evaluation.groups.get(metric)
                groups.setdefault(key, item_groups(*named) if named else None)
                place = place_of(cell, test_set, metric, sizes)
                kinds = {WITH_PICTURE: evaluation.items[metric]} | {
                    kind: values[metric] for kind, values in evaluation.spoilt.items() if metric in values
                }
                for kind, values in kinds.items():
                    rows.setdefault((place, cell.method, kind), []).append((cell.seed, cell.run_name, values[order]))
    return {
        key: Series(
            seeds=tuple(seed for seed, _, _ in found),
            runs=tuple(run for _, run, _ in found),
            ids=orders[key[0].setting, key[0].test_set, key[0].metric][0],
            items_SN=np.stack([values for _, _, values in found]),
            groups=groups[key[0].setting, key[0].test_set, key[0].metric],
        )
        for key, found in rows.items()
    }


def read_evaluations(plan: Plan) -> dict[tuple[str, str], Evaluation]:
    """Read every evaluation that exists: (cell id, test set) -> evaluation.

    Raises:
        ConfigError: one is damaged, or two runs were scored on a test set whose content changed in between.
    """
    found: dict[tuple[str, str], Evaluation] = {}
    contents: dict[tuple[str, str], tuple[Any, Path]] = {}
    for cell in plan.cells:
        for test_set in cell.test_sets:
            evaluation = read_evaluation(cell.run, test_set)
            if evaluation is None or not is_finished(cell.run):
                continue
            content = evaluation.summary.get("content_digest")
            first, first_run = contents.setdefault((cell.setting, test_set), (content, cell.run))
            if content != first:
                raise ConfigError(
                    f"Two runs were scored on different contents of {test_set}, so they cannot be compared.",
                    where=f"{first_run} and {cell.run}",
                    why="the files of the set were changed between their evaluations",
                    next_command="delete evaluation/ of the runs with the old files and give the study command again",
                )
            found[cell.cell_id, test_set] = evaluation
    return found


def _metrics(study: StudyConfig, cell: Cell) -> tuple[str, ...]:
    return next(setting.metrics for setting in study.settings if setting.name == cell.setting)


def _order(
    orders: dict[tuple[str, str, str], tuple[tuple[str, ...], str]],
    key: tuple[str, str, str],
    ids: tuple[str, ...],
    run: Path,
) -> npt.NDArray[np.int64]:
    """Return positions that bring a run's items into the order of the first run read."""
    reference, first_run = orders.setdefault(key, (ids, str(run)))
    if ids == reference:
        return np.arange(len(ids))
    where = {name: position for position, name in enumerate(ids)}
    missing = [name for name in reference if name not in where]
    if missing or len(where) != len(reference):
        example = missing[0] if missing else next(name for name in ids if name not in set(reference))
        raise ConfigError(
            f"Two runs were scored on different items of {key[1]}, so they cannot be paired.",
            where=f"{first_run} and {run}",
            why=f"{len(reference)} and {len(ids)} items; only one has {example!r}",
            next_command="score both on the same files: advl evaluate --run RUN --on " + key[1],
        )
    return np.array([where[name] for name in reference])
