"""The gathered result of a study or of runs: plain records, one frame of items, and methods to query them.

Accuracies are in percent and differences in points. A run is named by its folder, relative to the folder that
contains all runs. `shots` is "full" or a number as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from advl_pipeline.runs.evaluations import TrivialScores
from advl_pipeline.studies.config import StudyConfig, shots_rank
from advl_pipeline.studies.table import Number, Place, Row


def rows_of(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Return the rows with the wanted values in these columns."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult:
    """The gathered result of a study or of runs.

    Rows, with these columns besides setting, method, shots and seed:
      - cells: cell, run, state (finished, partial if a test set is missing, or pending) and the command that repeats
        its finetuning;
      - readouts of every run: percent of nodes (words, regions) that the student places as the teacher does, before
        and after the adapt stage, and by chance;
      - costs, means over seeds: seconds, bytes, parameters, and inference time in milliseconds per item.
    """

    study: StudyConfig
    folder: Path
    runs: Path
    """Folder that the names of runs are relative to."""
    command: str
    cells: tuple[Row, ...]
    items: pd.DataFrame
    """Tidy table of item scores (`table.ITEM_COLUMNS`)."""
    numbers: tuple[Number, ...]
    """Numbers computed from the table."""
    readouts: tuple[Row, ...]
    costs: tuple[Row, ...]
    caches: tuple[Mapping[str, Any], ...]
    """Caches that the runs read: path, identity, provenance, bytes and seconds; None if not recorded."""
    environments: tuple[Mapping[str, Any], ...]
    caveats: Mapping[str, tuple[str, ...]]
    """Setting -> caveats of its numbers, about the inputs of the students; empty for most settings."""
    trivial: Mapping[tuple[str, ...], TrivialScores]
    """(setting, metric, test set) -> scores without a student."""
    of_runs: bool = False
    """Whether it was gathered from runs without a study: one table by differences, without comparisons or claims."""

    @property
    def num_finished(self) -> int:
        return len(rows_of(self.cells, state="finished"))

    def finished(self, setting: str) -> list[Row]:
        """Return the finished cells of a setting, the smallest size and the first seed first."""
        done = rows_of(self.cells, setting=setting, state="finished")
        return sorted(done, key=lambda cell: (shots_rank(cell["shots"]), cell["seed"]))

    def find(self, quantity: str, place: Place | None = None, **wanted: object) -> list[Number]:
        """Return the numbers of a quantity, at a place and with the wanted values of fields."""
        wanted |= place._asdict() if place else {}
        numbers = self._by_quantity.get(quantity, ())
        return [number for number in numbers if all(getattr(number, name) == value for name, value in wanted.items())]

    @cached_property
    def _by_quantity(self) -> dict[str, list[Number]]:
        """Numbers by quantity, indexed since a page looks up hundreds of them."""
        by_quantity: dict[str, list[Number]] = {}
        for number in self.numbers:
            by_quantity.setdefault(number.quantity, []).append(number)
        return by_quantity

    def row(self, quantity: str, place: Place | None = None, **wanted: object) -> Any:
        """Return the first such number; None if there is none."""
        return next(iter(self.find(quantity, place, **wanted)), None)

    def places(self) -> list[Place]:
        """Return the places with an accuracy, in the order of the grid."""
        return list(dict.fromkeys(map(place_of, self.find("accuracy"))))

    def trivial_of(self, place: Place) -> TrivialScores | None:
        """Return the scores at a place without a student; None if its evaluations have none."""
        return self.trivial.get(place[:3])

    def best_control(self, place: Place) -> Any:
        """Return the accuracy of the best of the baseline and the controls, over the seeds of the focus method.

        A gain that does not exceed it does not come from the knowledge of a teacher. None if there is no such row.
        """
        study, rows = self.study, self.find("accuracy", place)
        focus = next((row for row in rows if row.method == study.focus), None)
        rivals = [
            row
            for row in rows
            if focus is not None
            and row is not focus
            and (row.method == study.baseline or study.variant(row.method).role in ("baseline", "control"))
            and set(row.seeds) >= set(focus.seeds)
        ]
        return max(rivals, key=lambda row: row.mean, default=None)


def place_of(row: Any) -> Place:
    """Return the place of a row of numbers."""
    return Place(*(getattr(row, name) for name in Place._fields))
