"""What `advl report` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.configuration import Output, option
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.outputs import ReplaceOptions

ReportFormat = Literal["html", "csv", "items", "json", "latex", "md"]

_BEGINS = b"|".join(
    (
        rb'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" .*>\n'
        rb'<meta name="color-scheme" content="light dark">\n<meta http-equiv="Content-Security-Policy" ',
        rb"setting,metric,test_set,shots,method,role,num_seeds,",
        rb"cell,run,setting,method,shots,size,seed,",
        rb'\{\n  "(answers|verdicts)": \[',
        rb"% .*mean \xc2\xb1 standard deviation over seeds|\n\Z",
        rb"# .*\n\n(.* answers \d+ of 100 |Nothing is told yet|\| claim \| setting \| verdict \| why \|\n)",
    )
)
"""How reports of each format begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig(DataRootOptions, ReplaceOptions):
    """Configuration of `advl report`."""

    run: tuple[Path, ...] = option(
        help="A study folder, or run folders and folders of runs.", such_as="runs/mine", metavar="RUN"
    )
    to: ReportFormat = option(
        "html",
        help="One self-contained page, or its numbers; `items` is the score of every item of every run, as CSV.",
    )
    output: Path | None = option(
        None,
        help="File to write [default: report.EXT in that folder, of several in the one that holds them all].",
        output=Output(makes="file", begins=_BEGINS, home=("run", "report.*")),
    )
    num_examples: int = option(
        6, help="Examples shown of differing answers, and of selected words; 0 for none.", minimum=0
    )
