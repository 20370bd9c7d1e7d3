"""A study run by the synthetic executor of the studies' tests."""

from __future__ import annotations

from pathlib import Path

import synthetic_runs
from synthetic_runs import write_study_file

from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.run import run_study


def make_study(folder: Path, *, num_seeds: int = 2, extra: str = "", **lines: str) -> StudyResult:
    return run_study(
        StudyRunConfig(
            study=str(write_study_file(folder, num_seeds=num_seeds, extra=extra, **lines)),
            output=folder / "study",
            caches=folder / "caches",
        ),
        execute=synthetic_runs.execute,
        prepare=synthetic_runs.prepare,
        digest=synthetic_runs.digest,
    )
