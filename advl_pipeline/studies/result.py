"""What was gathered of a study or of runs: plain records, one frame of items, and how they are asked.

Accuracies are in percent and differences in points. Runs are named by their folder relative to the folder that all of
them are in; `shots` is "full" or a number in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from advl_pipeline.studies.config import StudyConfig, shots_rank
from advl_pipeline.studies.table import Number, Place, Row


def rows_of(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Return the rows that are as wanted in these columns."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult:
    """Everything that was gathered.

    Rows, with these columns besides setting, method, shots and seed:
      - cells: cell, run, state (finished, partial where a test set is missing, or pending) and the command that
        repeats its finetuning;
      - readouts, of every run: percent of nodes (words, regions) that the student places as the teacher does, before
        and after the adapt step, and by chance;
      - costs, means over seeds: seconds, bytes, parameters, and milliseconds of inference for an item.
    """

    study: StudyConfig
    folder: Path
    runs: Path
    """What the names of runs are relative to."""
    command: str
    cells: tuple[Row, ...]
    items: pd.DataFrame
    """The tidy table (`table.ITEM_COLUMNS`)."""
    numbers: tuple[Number, ...]
    """What follows from it."""
    readouts: tuple[Row, ...]
    costs: tuple[Row, ...]
    caches: tuple[Mapping[str, Any], ...]
    """Caches that the runs read: path, identity, provenance, and bytes and seconds; None where nobody noted them."""
    environments: tuple[Mapping[str, Any], ...]
    caveats: Mapping[str, tuple[str, ...]]
    """Setting -> what a reader of its numbers must know of what the students saw; none for most."""
    trivial: Mapping[tuple[str, ...], Mapping[str, Any]]
    """(setting, metric, test set) -> chance and majority answer, as `AnswerTally.summary` gives them."""
    of_runs: bool = False
    """Gathered from runs that no study asked for: one table by what differs, which compares and claims nothing."""

    @property
    def num_finished(self) -> int:
        return len(rows_of(self.cells, state="finished"))

    def finished(self, setting: str) -> list[Row]:
        """Return the finished cells of a setting, the smallest size and the first seed first."""
        done = rows_of(self.cells, setting=setting, state="finished")
        return sorted(done, key=lambda cell: (shots_rank(cell["shots"]), cell["seed"]))

    def find(self, quantity: str, place: Place | None = None, **wanted: object) -> list[Number]:
        """Return the numbers of a quantity, at a place and with fields as wanted."""
        wanted |= place._asdict() if place else {}
        numbers = self._by_quantity.get(quantity, ())
        return [number for number in numbers if all(getattr(number, name) == value for name, value in wanted.items())]

    @cached_property
    def _by_quantity(self) -> dict[str, list[Number]]:
        """A page asks for hundreds of numbers."""
        by_quantity: dict[str, list[Number]] = {}
        for number in self.numbers:
            by_quantity.setdefault(number.quantity, []).append(number)
        return by_quantity

    def row(self, quantity: str, place: Place | None = None, **wanted: object) -> Any:
        """Return the first such number, None where there is none."""
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
