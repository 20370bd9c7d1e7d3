"""The gathered result of a study or of runs: records, one frame of items, and its numbers.

Accuracies are in percent and differences in points. A run is named by its folder, relative to the folder that
contains all runs. `shots` is "full" or a number as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from advl_pipeline.runs.evaluations import TrivialScores
from advl_pipeline.runs.results import ReadoutRow
from advl_pipeline.studies.config import StudyConfig, shots_rank
from advl_pipeline.studies.numbers import Accuracy, Numbers
from advl_pipeline.studies.table import Place


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """A run and its place in the grid of a study."""

    run_id: str
    run: str
    setting: str
    method: str
    shots: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class StudyRun(GridRun):
    """A run and how far it is: `partial` lacks the scores of a test set. `command` repeats its finetuning."""

    state: Literal["finished", "partial", "pending"]
    command: str


@dataclass(frozen=True, kw_only=True)
class StudyReadout(ReadoutRow, GridRun):
    """A row of a run's readout."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResult:
    """The gathered result of a study or of runs."""

    study: StudyConfig
    folder: Path
    outer: Path
    """Folder that the names of runs are relative to."""
    command: str
    runs: tuple[StudyRun, ...]
    items: pd.DataFrame
    """Tidy table of item scores (`table.ITEM_COLUMNS`)."""
    numbers: Numbers
    """Numbers computed from the table."""
    readouts: tuple[StudyReadout, ...]
    costs: tuple[Mapping[str, Any], ...]
    """Costs by setting, method and shots over the seeds: seconds, bytes, parameters, milliseconds per item."""
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
        return sum(run.state == "finished" for run in self.runs)

    def finished(self, setting: str) -> list[StudyRun]:
        """Return the finished runs of a setting, the smallest size and the first seed first."""
        done = (run for run in self.runs if (run.setting, run.state) == (setting, "finished"))
        return sorted(done, key=lambda run: (shots_rank(run.shots), run.seed))

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
