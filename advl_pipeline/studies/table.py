"""One tidy table of item scores, from which every number of a study follows.

Its rows (`item_frame`) are a cell, a test set, a metric, a view of the picture and an item. Gathered by method and
place (setting, metric, test set, shots), they are matrices of seeds and items (`Table`). What a claim is about is
computed from matrices as a matrix is: the use of pictures, the drop under shift, a difference between methods, a mean
over shots. So all get their interval over seeds and items in one way.

Shapes: S seeds, N items of a test set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.evaluation.item_contributions import Contribution, joint_interval, lost_in_part, mean_per_seed
from advl_pipeline.evaluation.question_match import QuestionMatch, Questions, match_questions
from advl_pipeline.evaluation.statistics import FloatArray, Interval, ItemGroups, item_groups
from advl_pipeline.runs.names import evaluation_file, is_finished
from advl_pipeline.runs.results import Evaluation, read_evaluation
from advl_pipeline.studies.config import FULL, StudyConfig, shots_label
from advl_pipeline.studies.plan import Plan
from advl_pipeline.studies.result import Place

WITH_PICTURE = ""
"""Kind of the scores with the true picture; other kinds name how it was spoilt."""

USE_KIND = "swapped"
"""How pictures are spoilt where the use of vision is judged."""

ITEM_COLUMNS = (
    "cell", "run", "setting", "method", "shots", "size", "seed", "test_set", "metric", "view", "item", "picture",
    "type", "score",
)  # fmt: skip

Sizes = Mapping[tuple[str, int | None], int]
"""(setting, shots) -> number of training questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """One number per seed, as the sum of means over sets of items. Sets stand in one order wherever two are compared.

    Accuracies have one set; a drop to other questions, or to a part, has more. `ids` names the items, and `runs` the
    runs of the seeds.
    """

    seeds: tuple[int, ...]
    sets: tuple[Contribution, ...]
    ids: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def matrix(self) -> FloatArray:
        """Scores of the first set, of shape (S, N)."""
        return self.sets[0].values_SN

    @property
    def groups(self) -> ItemGroups | None:
        """Which items of the first set show one picture; None where the evaluation did not write it."""
        return self.sets[0].groups

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> the number, in points."""
        return dict(zip(self.seeds, mean_per_seed(self.sets), strict=True))

    @property
    def interval(self) -> Interval:
        """Interval of the mean over seeds, from resampled seeds and items, in points."""
        return joint_interval(self.sets)

    def of(self, seeds: Sequence[int]) -> Scores:
        """Return the same of these seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        sets = tuple(dataclasses.replace(one, values_SN=one.values_SN[rows]) for one in self.sets)
        return Scores(seeds=tuple(seeds), sets=sets)

    def at(self, positions_n: npt.NDArray[np.int64], groups: ItemGroups | None) -> Scores:
        """Return the same of these items."""
        kept = Contribution(values_SN=self.matrix[:, positions_n], groups=groups)
        return Scores(seeds=self.seeds, sets=(kept,))


def paired(*scores: Scores | None) -> tuple[Scores, ...]:
    """Return the scores over the seeds that all have; nothing where there is no such seed, or one is missing."""
    found = [one for one in scores if one is not None]
    if not found or len(found) < len(scores):
        return ()
    seeds = tuple(seed for seed in found[0].seeds if all(seed in one.seeds for one in found))
    return tuple(one.of(seeds) for one in found) if seeds else ()


def weighted_sum(terms: Sequence[tuple[float, Scores]]) -> Scores | None:
    """Add numbers over the same items, over the seeds that all have; None where there is no such seed."""
    common = paired(*(scores for _, scores in terms))
    if not common:
        return None
    weights = [weight for weight, _ in terms]
    sets = []
    for same in zip(*(scores.sets for scores in common), strict=True):
        values = [weight * one.values_SN for weight, one in zip(weights, same, strict=True)]
        sets.append(dataclasses.replace(same[0], values_SN=np.sum(values, axis=0)))
    return Scores(seeds=common[0].seeds, sets=tuple(sets))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """A method's accuracy on two sides, and what is lost from one to the other; `questions` is of two test sets."""

    questions: Questions | None
    before: Scores
    after: Scores
    lost: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The rows of a study: (place, method, kind of picture) -> scores."""

    study: StudyConfig
    rows: Mapping[tuple[Place, str, str], Scores]

    @property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(place for place, _, _ in self.rows))

    def along_shots(self) -> dict[tuple[str, str, str], list[Place]]:
        """Return the places of each (setting, metric, test set), in the order of their shots."""
        found: dict[tuple[str, str, str], list[Place]] = {}
        for place in self.places:
            found.setdefault((place.setting, place.metric, place.test_set), []).append(place)
        return {key: sorted(places, key=lambda place: place.rank) for key, places in found.items()}

    def reference(self, place: Place) -> str:
        """Return the in-domain test set of a place's setting, which is its first."""
        return self.study.setting(place.setting).reference

    def accuracy(self, place: Place, method: str, kind: str = WITH_PICTURE) -> Scores | None:
        return self.rows.get((place, method, kind))

    def use(self, place: Place, method: str, kind: str = USE_KIND) -> Sides | None:
        """Compare a method with the true picture and with a spoilt one, on the same items."""
        found = paired(self.accuracy(place, method), self.accuracy(place, method, kind))
        return _sides(found[0], found[1], None) if found else None

    def drop(self, place: Place, method: str) -> Sides | None:
        """Compare a method on the shifted set of a place with the same runs on the in-domain set.

        Both are over the common questions where those are asked otherwise, else each is over its whole set.
        """
        reference = self.reference(place)
        origin = self.accuracy(dataclasses.replace(place, test_set=reference), method)
        shifted = self.accuracy(place, method)
        if origin is None or shifted is None or not (found := paired(origin, shifted)):
            return None
        dataset = self.study.setting(place.setting).dataset
        match = match_questions(dataset, reference, origin.ids, place.test_set, shifted.ids)
        before, after = found
        if match.questions == "same":
            # Grouped by the pictures of the in-domain set.
            groups = before.groups.subset(match.original_n) if before.groups else None
            before, after = before.at(match.original_n, groups), after.at(match.shifted_n, groups)
        return _sides(before, after, match)


def _sides(before: Scores, after: Scores, match: QuestionMatch | None) -> Sides:
    questions = None if match is None else match.questions
    sets: tuple[Contribution, ...]
    if match is not None and questions == "part":
        sets = lost_in_part(before.sets[0], after.sets[0], match.original_n, match.shifted_n)
    elif questions == "other":
        sets = (before.sets[0], dataclasses.replace(after.sets[0], values_SN=-after.matrix))
    else:
        sets = (dataclasses.replace(before.sets[0], values_SN=before.matrix - after.matrix),)
    return Sides(questions=questions, before=before, after=after, lost=Scores(seeds=before.seeds, sets=sets))


def item_frame(plan: Plan, sizes: Sizes, evaluations: Mapping[tuple[str, str], Evaluation]) -> pd.DataFrame:
    """Return the tidy table of a study's item scores.

    Columns: `cell`, `run`, `setting`, `method`, `shots` ("full" for all data), `size` (training questions), `seed`,
    `test_set`, `metric`, `view` ("" for the true picture, else how it was spoilt), `item`, its `picture` and `type`,
    "" where the evaluation did not tell, and `score`, between 0 and 1.

    Args:
        evaluations: (cell id, test set) -> what was stored.

    Raises:
        ConfigError: an evaluation lacks a metric of its setting.
    """
    parts = [pd.DataFrame({name: [] for name in ITEM_COLUMNS})]
    for cell, test_set in ((one, name) for one in plan.cells for name in one.test_sets):
        evaluation = evaluations.get((cell.cell_id, test_set))
        for metric in plan.study.setting(cell.setting).metrics if evaluation else ():
            assert evaluation is not None
            if metric not in evaluation.items:
                if plan.of_runs:
                    continue
                raise ConfigError(
                    f"A run has no item scores of {metric}.",
                    where=str(evaluation_file(cell.run, test_set, ".npz")),
                    why=f"it has {', '.join(sorted(evaluation.items)) or 'none'}",
                    next_command=advise(["advl", "evaluate", str(cell.run), "--on", test_set]),
                )
            pictures, types = evaluation.groups.get(metric, ("", ""))
            fixed = {
                "cell": cell.cell_id,
                "run": cell.run_name,
                "setting": cell.setting,
                "method": cell.method,
                "shots": shots_label(cell.shots),
                "size": sizes[cell.setting, cell.shots],
                "seed": cell.seed,
                "test_set": test_set,
                "metric": metric,
            }
            views = {WITH_PICTURE: evaluation.items} | dict(evaluation.spoilt)
            parts += [
                pd.DataFrame(
                    fixed
                    | {"view": view, "item": evaluation.ids[metric], "picture": pictures, "type": types}
                    | {"score": items[metric]}
                )
                for view, items in views.items()
                if metric in items
            ]
    return pd.concat(parts[1:] or parts, ignore_index=True)


def build_table(study: StudyConfig, frame: pd.DataFrame) -> Table:
    """Gather item scores by place, method and view, all in the order of items of the first run.

    Args:
        frame: as `item_frame` returns it.

    Raises:
        ConfigError: two runs were scored on different items, so that nothing can be paired.
    """
    rows: dict[tuple[Place, str, str], Scores] = {}
    first: dict[tuple[str, str, str], pd.DataFrame] = {}
    keys = ["setting", "metric", "test_set", "size", "shots", "method", "view"]
    by_row: Any = frame.groupby(keys, sort=False)
    for (setting, metric, test_set, size, shots, method, view), part in by_row:
        runs: dict[int, pd.DataFrame] = {int(seed): run for seed, run in part.groupby("seed", sort=False)}
        reference = first.setdefault((setting, test_set, metric), next(iter(runs.values())))
        told = reference["picture"].ne("").any()
        groups = item_groups(reference["picture"].tolist(), reference["type"].tolist()) if told else None
        place = Place(
            setting=setting,
            metric=metric,
            test_set=test_set,
            size=int(size),
            shots=None if shots == FULL else int(shots),
        )
        values_SN = np.stack([_in_order(run, reference) for run in runs.values()])
        rows[place, method, view] = Scores(
            seeds=tuple(runs),
            runs=tuple(str(run["run"].iloc[0]) for run in runs.values()),
            ids=tuple(reference["item"]),
            sets=(Contribution(values_SN=values_SN, groups=groups),),
        )
    return Table(study=study, rows=rows)


def _in_order(run: pd.DataFrame, reference: pd.DataFrame) -> FloatArray:
    """Return the scores of a run in the order of the items of the first one."""
    scores = run.set_index("item")["score"]
    missing = reference.loc[~reference["item"].isin(scores.index), "item"]
    if len(missing) or len(scores) != len(reference):
        more = run.loc[~run["item"].isin(reference["item"]), "item"]
        raise ConfigError(
            f"Two runs were scored on different items of {run['test_set'].iloc[0]}, so they cannot be paired.",
            where=f"{reference['run'].iloc[0]} and {run['run'].iloc[0]}",
            why=f"{len(reference)} and {len(run)} items; only one has {[*missing, *more][0]!r}",
            next_command=advise(
                ["advl", "evaluate", "RUN", "--on", str(run["test_set"].iloc[0])], note="score both on the same files"
            ),
        )
    found: FloatArray = scores.loc[reference["item"]].to_numpy(dtype=np.float64)
    return found


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
