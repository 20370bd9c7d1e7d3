"""One tidy table of item scores, from which every number of a study follows.

A row is a cell, a test set, a metric, a view of the picture and an item (`ITEM_COLUMNS`). Gathered by method and
place (setting, metric, test set, shots), they are matrices of seeds and items (`Table`). What a claim is about is
computed from matrices as a matrix is: the use of pictures, the drop under shift, a difference between methods, a mean
over shots. So all get their interval over seeds and items in one way.

`StudyResult` holds that table and the frames of what follows from it or stands in the runs. Accuracies are in percent
and differences in points. Runs are named by their folder relative to the folder that all of them lie in; `shots` is
"full" or a number in words.

Shapes: S seeds, N items of a test set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.evaluation.shift import Questions, match_questions
from advl_pipeline.evaluation.statistics import (
    Contribution,
    FloatArray,
    Interval,
    ItemGroups,
    item_groups,
    joint_interval,
    lost_in_part,
    mean_per_seed,
)
from advl_pipeline.studies.config import FULL, StudyConfig

WITH_PICTURE = ""
"""View of the true picture; other views name how it was spoilt."""

USE_VIEW = "swapped"
"""How pictures are spoilt where the use of vision is judged."""

ITEM_COLUMNS = (
    "cell", "run", "setting", "method", "shots", "size", "seed", "test_set", "metric", "view", "item", "picture",
    "type", "score",
)  # fmt: skip


class Place(NamedTuple):
    """Where methods are compared. `size` is the number of training questions, `shots` how it was asked for."""

    setting: str
    metric: str
    test_set: str
    size: int
    shots: str

    @property
    def rank(self) -> tuple[int, bool]:
        """Order along the shots; all training questions stand after as many that were asked for by number."""
        return self.size, self.shots == FULL


def rows_of(frame: pd.DataFrame, **wanted: object) -> list[Any]:
    """Return the rows of a frame whose columns are as wanted, with the columns as attributes."""
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return list(frame.itertuples(index=False))


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
    sets = []
    for same in zip(*(scores.sets for scores in common), strict=True):
        values = [weight * one.values_SN for (weight, _), one in zip(terms, same, strict=True)]
        sets.append(dataclasses.replace(same[0], values_SN=np.sum(values, axis=0)))
    return Scores(seeds=common[0].seeds, sets=tuple(sets))


class Sides(NamedTuple):
    """A method's accuracy on two sides, and what is lost from one to the other; `questions` is of two test sets."""

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
        """Return the places of each (setting, metric, test set), in the order of their shots."""
        found: dict[tuple[str, ...], list[Place]] = {}
        for place in self.places:
            found.setdefault(place[:3], []).append(place)
        return [sorted(places, key=lambda place: place.rank) for places in found.values()]

    def reference(self, place: Place) -> str:
        """Return the in-domain test set of a place's setting, which is its first."""
        return self.study.setting(place.setting).reference

    def accuracy(self, place: Place, method: str, view: str = WITH_PICTURE) -> Scores | None:
        return self.scores.get((place, method, view))

    def sides(self, place: Place, method: str, view: str = WITH_PICTURE) -> Sides | None:
        """Compare a method with the true picture and with a spoilt one, on the same items.

        Without a view it is compared on the shifted set of a place and on the in-domain set. Both are over the common
        questions where those are asked otherwise, else each is over its whole set.
        """
        reference = self.reference(place)
        origin = self.accuracy(place if view else place._replace(test_set=reference), method)
        other = self.accuracy(place, method, view)
        questions: Questions | None = None
        if origin is None or other is None or not (found := paired(origin, other)):
            return None
        before, after = (one.sets[0] for one in found)
        if not view:
            dataset = self.study.setting(place.setting).dataset
            match = match_questions(dataset, reference, origin.ids, place.test_set, other.ids)
            questions = match.questions
            if questions == "same":
                # Grouped by the pictures of the in-domain set.
                groups = before.groups.subset(match.original_n) if before.groups else None
                before = Contribution(values_SN=before.values_SN[:, match.original_n], groups=groups)
                after = Contribution(values_SN=after.values_SN[:, match.shifted_n], groups=groups)
        if questions == "part":
            lost = lost_in_part(before, after, match.original_n, match.shifted_n)
        elif questions == "other":
            lost = (before, dataclasses.replace(after, values_SN=-after.values_SN))
        else:
            lost = (dataclasses.replace(before, values_SN=before.values_SN - after.values_SN),)
        sides = (Scores(seeds=found[0].seeds, sets=sets) for sets in ((before,), (after,), lost))
        return Sides(questions, *sides)


def build_table(study: StudyConfig, items: pd.DataFrame) -> Table:
    """Gather item scores by place, method and view, all in the order of items of the first run.

    Args:
        items: the tidy table.

    Raises:
        ConfigError: two runs were scored on different items, so that nothing can be paired.
    """
    scores: dict[tuple[Place, str, str], Scores] = {}
    first: dict[tuple[str, ...], pd.DataFrame] = {}
    by_row: Any = items.groupby([*Place._fields, "method", "view"], sort=False)
    for (*where, method, view), part in by_row:
        place = Place(*where)._replace(size=int(where[3]))
        runs = part.drop_duplicates("seed")
        reference = first.setdefault(place[:3], part[part["seed"] == runs["seed"].iloc[0]])
        values = part.pivot(index="seed", columns="item", values="score").reindex(index=runs["seed"])
        told = reference["picture"].ne("").any()
        groups = item_groups(reference["picture"].tolist(), reference["type"].tolist()) if told else None
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
    told = values.notna()
    wanted = pd.Series(values.columns.isin(reference["item"]), index=values.columns)
    wrong = told.ne(wanted, axis=1).any(axis=1)
    if not wrong.any() and wanted.sum() == len(reference):
        return
    run = runs[wrong.to_numpy()].iloc[0] if wrong.any() else runs.iloc[0]
    odd = sorted(set(values.columns[told.loc[run["seed"]]]) ^ set(reference["item"]))
    raise ConfigError(
        f"Two runs were scored on different items of {run['test_set']}, so they cannot be paired.",
        where=f"{reference['run'].iloc[0]} and {run['run']}",
        why=f"{len(odd)} items are in one of them alone, such as {odd[0]!r}",
        next_command=advise(
            ["advl", "evaluate", "RUN", "--on", run["test_set"]], note="score both on the same files"
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult:
    """Everything that was gathered.

    Frames, with their columns beside setting, method, shots and seed:
      - cells: cell, run, state (finished, partial where a test set is missing, or pending) and the command that
        repeats its finetuning;
      - items: the tidy table (`table.ITEM_COLUMNS`);
      - numbers: what follows from it (`comparisons.COLUMNS`);
      - readouts, of every run: percent of nodes (words, regions) that the student places as the teacher does, before
        and after the adapt step, and by chance;
      - costs, means over seeds: seconds, bytes, parameters, and milliseconds of inference for an item.
    """

    study: StudyConfig
    folder: Path
    runs: Path
    """What the names of runs are relative to."""
    command: str
    cells: pd.DataFrame
    items: pd.DataFrame
    numbers: pd.DataFrame
    readouts: pd.DataFrame
    costs: pd.DataFrame
    caches: tuple[Mapping[str, Any], ...]
    """Caches that the runs read: path, identity, provenance, and bytes and seconds; None where nobody noted them."""
    environments: tuple[Mapping[str, Any], ...]
    caveats: Mapping[str, tuple[str, ...]]
    """Setting -> what a reader of its numbers must know of what the students saw; none for most."""
    trivial: Mapping[tuple[str, ...], Mapping[str, Any]]
    """(setting, metric, test set) -> chance and majority answer, as `AnswerTally.summary` gives them."""
    of_runs: bool = False
    """Gathered from runs that no study asked for, which claim nothing."""

    @property
    def num_finished(self) -> int:
        return int((self.cells["state"] == "finished").sum())

    def finished(self, setting: str) -> list[Any]:
        """Return the finished cells of a setting, the smallest size and the first seed first."""
        done = rows_of(self.cells, setting=setting, state="finished")
        return sorted(done, key=lambda cell: (not cell.shots.isdecimal(), len(cell.shots), cell.shots, cell.seed))

    def find(self, quantity: str, place: Place | None = None, **wanted: object) -> list[Any]:
        """Return the rows of a quantity, at a place and with columns as wanted."""
        wanted |= place._asdict() if place else {}
        rows = self._by_quantity.get(quantity, ())
        return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]

    @cached_property
    def _by_quantity(self) -> dict[str, list[Any]]:
        """A page asks for hundreds of numbers."""
        return {str(name): rows_of(part) for name, part in self.numbers.groupby("quantity", sort=False)}

    def one(self, quantity: str, place: Place | None = None, **wanted: object) -> Any:
        """Return the first such row, None where there is none."""
        return next(iter(self.find(quantity, place, **wanted)), None)

    def places(self) -> list[Place]:
        """Places that have an accuracy, in the order of the grid."""
        return list(dict.fromkeys(map(place_of, self.find("accuracy"))))

    def trivial_of(self, place: Place) -> Mapping[str, Any]:
        """Return what is right at a place without a student; nothing where its evaluations did not tell."""
        return self.trivial.get(place[:3], {})

    def best_control(self, place: Place) -> Any:
        """Return the accuracy of the best of the baseline and the controls, over the seeds of the focus method.

        A gain that is no gain over this one does not come from what a teacher knows. None where there is no such row.
        """
        study, found = self.study, self.find("accuracy", place)
        focus = next((row for row in found if row.method == study.focus), None)
        rivals = [
            row
            for row in found
            if focus is not None
            and row is not focus
            and (row.method == study.baseline or study.variant(row.method).role in ("baseline", "control"))
            and set(row.seeds) >= set(focus.seeds)
        ]
        return max(rivals, key=lambda row: row.mean, default=None)


def place_of(row: Any) -> Place:
    """Return the place of a row of numbers."""
    return Place(*(getattr(row, name) for name in Place._fields))
