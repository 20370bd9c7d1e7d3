"""What `advl report` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.configuration import Configuration, option

ReportFormat = Literal["html", "csv", "json", "latex", "md"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig(Configuration):
    """Configuration of `advl report`."""

    study: Path = option(help="Study folder, run folder, or folder of runs.")
    to: ReportFormat = option("html", help="One self-contained page, or the numbers in another form.")
    output: Path | None = option(None, help="File to write [default: report.EXT in that folder].")
    data_root: Path | None = option(
        None, help="Folder of the datasets, for examples [default: $ADVL_DATA or datasets/]."
    )
    num_examples: int = option(
        6, help="Examples shown of differing answers, and of selected words; 0 for none.", minimum=0
    )
