"""`run_report`: a study, a run or a folder of runs becomes one page or one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from advl_pipeline.atomic import make_folder, write_text
from advl_pipeline.outputs import require_outputs
from advl_pipeline.reporting.answer import Answer, answers
from advl_pipeline.reporting.config import ReportConfig, ReportFormat
from advl_pipeline.reporting.formats import as_csv, as_items, as_json, as_latex, as_markdown
from advl_pipeline.reporting.given import require_given
from advl_pipeline.studies.claims import Verdict, judge_claims
from advl_pipeline.studies.gather import gather_runs, gather_study
from advl_pipeline.studies.result import StudyResult

_WRITERS: dict[ReportFormat, tuple[str, Callable[[StudyResult], str]]] = {
    "csv": ("csv", as_csv),
    "items": ("items.csv", as_items),
    "json": ("json", as_json),
    "latex": ("tex", as_latex),
    "md": ("md", as_markdown),
}
"""How files of a format end, and what writes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportResult:
    """Where the report lies, what was in it, what it opens with, and the verdicts."""

    output: Path
    study: StudyResult
    answers: tuple[Answer, ...]
    verdicts: tuple[Verdict, ...]


def run_report(config: ReportConfig) -> ReportResult:
    """Gather a study and write it in the form asked for.

    Raises:
        ConfigError: a folder holds neither a study nor evaluated runs, or damaged ones; a study is among several; a
            file that is no report lies in the place of this one.
        StorageError: the file cannot be written.
    """
    require_outputs(config)
    study = require_given(config)
    result = gather_study(study) if study else gather_runs(*config.run)
    ending, write = _WRITERS.get(config.to, ("html", partial(_page, config=config)))
    output = config.output or result.folder / f"report.{ending}"
    require_outputs(config, output=output)
    content = write(result)
    make_folder(output.parent)
    write_text(output, content)
    return ReportResult(output=output, study=result, answers=answers(result), verdicts=judge_claims(result))


def _page(result: StudyResult, config: ReportConfig) -> str:
    from advl_pipeline.reporting.examples import collect_examples, collect_words
    from advl_pipeline.reporting.page import render_page

    examples, words = (
        [
            found
            for setting in result.study.settings
            if (found := collect(result, setting, data_root=config.data_root, limit=config.num_examples)) is not None
        ]
        for collect in (collect_examples, collect_words)
    )
    return render_page(result, examples, words)
