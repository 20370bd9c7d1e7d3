"""`run_report`: report a study, a run or a folder of runs as one page or one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from advl_pipeline.base.atomic import make_folder, write_text
from advl_pipeline.base.configuration import Output, option
from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.folders import MARKERS
from advl_pipeline.base.outputs import ReplaceOptions, require_outputs
from advl_pipeline.datasets.config import DataRootOptions

if TYPE_CHECKING:
    from advl_pipeline.studies.result import StudyResult

ReportFormat = Literal["html", "csv", "items", "json", "md"]

_BEGINS = b"|".join(
    (
        rb'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" .*>\n'
        rb'<meta name="color-scheme" content="light dark">\n<meta http-equiv="Content-Security-Policy" ',
        rb"setting,metric,test_set,(size,shots,method,against,|shots,method,role,num_seeds,)",
        rb"(cell|run_id),run,setting,method,shots,size,seed,",
        rb'\{\n  "(answers|verdicts)": \[',
        rb"# .*\n\n(.* answers \d+ of 100 |Nothing is told yet|There is no answer yet|.* so they are not compared; "
        rb"|\d+ runs stand in one table |The table has the scores|\| claim \| setting \| verdict \| why \|\n)",
    )
)
"""The first bytes of a report in each format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig(DataRootOptions, ReplaceOptions):
    """Configuration of `advl report`."""

    run: tuple[Path, ...] = option(
        help="A study folder, or run folders and folders of runs.", such_as="runs/mine", metavar="RUN"
    )
    to: ReportFormat = option(
        "html",
        help="Format: one self-contained page, or its numbers; `items` is the score of every item of every run, as "
        "CSV.",
    )
    output: Path | None = option(
        None,
        help="File to write [default: report.EXT in that folder; for several folders, in their common parent].",
        output=Output(makes="file", begins=_BEGINS, home=("run", "report.*")),
    )


def run_report(config: ReportConfig) -> tuple[Path, StudyResult]:
    """Gather a study, write its report in the requested format, and return the path and the result.

    Raises:
        ConfigError: a folder contains neither a study nor evaluated runs, or damaged ones; a study is among several
            folders; the report would overwrite a file that is not a report.
        StorageError: the file cannot be written.
    """
    from advl_pipeline.studies.loose_runs import folders_of_runs

    require_outputs(config)
    studies = [folder for folder in config.run if (folder / MARKERS["study"].file).exists()]
    if studies and len(config.run) > 1:
        raise ConfigError(
            "A study is reported by itself.",
            where=str(studies[0]),
            next_command=advise(["advl", "report", str(studies[0])]),
        )
    if not studies:
        folders_of_runs(config.run)
    # Imported only after every refusal that does not need them.
    from advl_pipeline.reporting import tables
    from advl_pipeline.reporting.page import page_of
    from advl_pipeline.studies.gather import gather_runs, gather_study

    result = gather_study(studies[0]) if studies else gather_runs(*config.run)
    output = config.output or result.folder / f"report.{'items.csv' if config.to == 'items' else config.to}"
    require_outputs(config, output=output)
    if config.to == "html":
        content = page_of(result, data_root=config.data_root)
    else:
        content = tables.WRITERS[config.to](result)
    make_folder(output.parent)
    write_text(output, content)
    return output, result
