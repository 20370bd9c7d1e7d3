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

    run: tuple[Path, ...] = option(
        help="A study folder, or run folders and folders of runs.", such_as="runs/mine", metavar="RUN"
    )
    to: ReportFormat = option("html", help="One self-contained page, or the numbers in another form.")
    output: Path | None = option(
        None, help="File to write [default: report.EXT in that folder, of several in the one that holds them all]."
    )
    num_examples: int = option(
        6, help="Examples shown of differing answers, and of selected words; 0 for none.", minimum=0
    )
