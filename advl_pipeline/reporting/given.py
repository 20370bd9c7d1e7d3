"""What is refused before numbers are read: folders that hold neither a study nor a run."""

from __future__ import annotations

from pathlib import Path

from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.reporting.config import ReportConfig
from advl_pipeline.studies.folder import STUDY_FILE
from advl_pipeline.studies.loose_runs import folders_of_runs


def require_given(config: ReportConfig) -> Path | None:
    """Return the folder of the study that is to be reported; None for runs.

    Raises:
        ConfigError: a study is among several folders, or one holds neither a study nor a run.
    """
    studies = [folder for folder in config.run if (folder / STUDY_FILE).exists()]
    if studies and len(config.run) > 1:
        raise ConfigError(
            "A study is reported by itself.",
            where=str(studies[0]),
            why=f"{len(config.run)} folders were given",
            next_command=advise(["advl", "report", str(studies[0])]),
        )
    if not studies:
        folders_of_runs(config.run)
        return None
    return studies[0]
