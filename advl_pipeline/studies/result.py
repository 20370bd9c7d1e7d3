"""The gathered result of a study or of runs: plain records, one frame of items, and its numbers.

Accuracies are in percent and differences in points. A run is named by its folder, relative to the folder that
contains all runs. `shots` is "full" or a number as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from advl_pipeline.runs.evaluations import TrivialScores
from advl_pipeline.studies.config import StudyConfig, shots_rank
from advl_pipeline.studies.numbers import Accuracy, Numbers
from advl_pipeline.studies.table import Place

Row = dict[str, Any]
"""A run's values, by column."""


def rows_of(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Return the rows with the wanted values in these columns."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult:
    """The gathered result of a study or of runs.

    Rows, with these columns besides setting, method, shots and seed:
      - runs: run_id, run, state (finished, partial if a test set is missing, or pending) and the command that repeats
        its finetuning;
      - readouts of every run: percent of nodes (words, regions) that the student places as the teacher does, before
        and after the adapt stage, and by chance;
      - costs, means over seeds: seconds, bytes, parameters, and inference time in milliseconds per item.
    """

    study: StudyConfig
    folder: Path
    outer: Path
    """Folder that the names of runs are relative to."""
    command: str
    runs: tuple[Row, ...]
    items: pd.DataFrame
    """Tidy table of item scores (`table.ITEM_COLUMNS`)."""
    numbers: Numbers
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
        return len(rows_of(self.runs, state="finished"))

    def finished(self, setting: str) -> list[Row]:
        """Return the finished runs of a setting, the smallest size and the first seed first."""
        done = rows_of(self.runs, setting=setting, state="finished")
        return sorted(done, key=lambda row: (shots_rank(row["shots"]), row["seed"]))

    def trivial_of(self, place: Place) -> TrivialScores | None:
        """Return the scores at a place without a student; None if its evaluations have none."""
        return self.trivial.get(place[:3])

    def best_control(self, place: Place) -> Accuracy | None:
        """Return the accuracy of the best of the baseline and the controls, over the seeds of the focus method.

        A gain that does not exceed it does not come from the knowledge of a teacher. None if there is no such row.
        """
        study, focus = self.study, self.numbers.accuracy(place, self.study.focus)
        rivals = [
            row
            for row in self.numbers.accuracies
            if focus is not None
            and row.place == place
            and row is not focus
            and (row.method == study.baseline or study.variant(row.method).role in ("baseline", "control"))
            and row.estimate.by_seed.keys() >= focus.estimate.by_seed.keys()
        ]
        return max(rivals, key=lambda row: row.estimate.mean, default=None)
