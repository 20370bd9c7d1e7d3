"""`run_report`: a study, a run or a folder of runs becomes one page or one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.atomic import make_folder, write_text
from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.outputs import require_outputs
from advl_pipeline.reporting.answer import Answer, answers
from advl_pipeline.reporting.config import ReportConfig, ReportFormat
from advl_pipeline.reporting.formats import as_csv, as_items, as_json, as_latex, as_markdown
from advl_pipeline.studies.claims import Verdict, judge_claims
from advl_pipeline.studies.folder import STUDY_FILE
from advl_pipeline.studies.gather import gather_runs, gather_study
from advl_pipeline.studies.result import StudyResult

_EXTENSIONS: dict[ReportFormat, str] = {"items": "items.csv", "latex": "tex"}
"""Where a format's files do not end as it is called."""


_WRITERS: dict[ReportFormat, Callable[[StudyResult], str]] = {
    "csv": as_csv,
    "items": as_items,
    "json": as_json,
    "latex": as_latex,
    "md": as_markdown,
}


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
    studies = [folder for folder in config.run if (folder / STUDY_FILE).exists()]
    if studies and len(config.run) > 1:
        raise ConfigError(
            "A study is reported by itself.",
            where=str(studies[0]),
            why=f"{len(config.run)} folders were given",
            next_command=advise(["advl", "report", str(studies[0])]),
        )
    result = gather_study(studies[0]) if studies else gather_runs(*config.run)
    output = config.output or result.folder / f"report.{_EXTENSIONS.get(config.to, config.to)}"
    require_outputs(config, output=output)
    content = _render(result, config)
    make_folder(output.parent)
    write_text(output, content)
    return ReportResult(output=output, study=result, answers=answers(result), verdicts=judge_claims(result))


def _render(result: StudyResult, config: ReportConfig) -> str:
    if config.to != "html":
        return _WRITERS[config.to](result)
    from advl_pipeline.reporting.examples import collect_examples, collect_words
    from advl_pipeline.reporting.page import render_page

    examples = [
        collect_examples(result, setting, data_root=config.data_root, limit=config.num_examples)
        for setting in result.study.settings
    ]
    words = [
        collect_words(result, setting, data_root=config.data_root, limit=config.num_examples)
        for setting in result.study.settings
    ]
    return render_page(
        result, [item for item in examples if item is not None], [item for item in words if item is not None]
    )
