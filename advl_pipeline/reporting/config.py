"""What `advl report` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.configuration import option
from advl_pipeline.datasets.config import DataRootOptions

ReportFormat = Literal["html", "csv", "json", "latex", "md"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig(DataRootOptions):
    """Configuration of `advl report`."""

    study: Path = option(help="Study folder, run folder, or folder of runs.")
    to: ReportFormat = option("html", help="One self-contained page, or the numbers in another form.")
    output: Path | None = option(None, help="File to write [default: report.EXT in that folder].")
    num_examples: int = option(
        6, help="Examples shown of differing answers, and of selected words; 0 for none.", minimum=0
    )
