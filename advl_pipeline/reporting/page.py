"""The HTML page of a study or of a run: one file, no request, everything escaped by the template engine.

This module does only the layout: numbers come from `StudyResult` and the run folder, words from `wording`, drawings
from `figures` and `run_view`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from advl_pipeline.reporting.answer import answers
from advl_pipeline.reporting.examples import collect_examples, collect_words
from advl_pipeline.reporting.figures import (
    SCHEMES,
    Figure,
    Looks,
    accuracy_figure,
    answer_figure,
    gain_figure,
    looks,
)
from advl_pipeline.reporting.run_view import view_run
from advl_pipeline.reporting.tables import loss_tables, render_report
from advl_pipeline.studies.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED
from advl_pipeline.studies.result import StudyResult

_OUTCOME_CLASS = {SUPPORTED: "supported", NOT_SUPPORTED: "failed", UNDECIDED: "undecided"}


def page_of(result: StudyResult, *, data_root: Path | None, num_examples: int = 6) -> str:
    """Render the report of a study, of several runs, or of one run as one HTML document."""
    examples, words = (
        [
            shown
            for setting in result.study.settings
            if (shown := collect(result, setting, data_root=data_root, limit=num_examples)) is not None
        ]
        for collect in (collect_examples, collect_words)
    )
    look = looks(result.study)
    is_run = result.of_runs and len(result.runs) == 1
    assets = resources.files("advl_pipeline.reporting").joinpath("assets")
    style, script = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    for scheme, colours in SCHEMES.items():
        variables = "; ".join(f"--{name}: {colour}" for name, colour in colours.items())
        style = f"@media (prefers-color-scheme: {scheme}) {{ :root {{ {variables} }} }}\n{style}"
    # The page loads nothing and permits only this style sheet and this script.
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    policy = "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests)
    return render_report(
        "run.html" if is_run else "study.html",
        result,
        outcome_class=_OUTCOME_CLASS,
        look=look,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        answer_figures=[] if is_run else [answer_figure(result, look, answer.place) for answer in answers(result)],
        run=view_run(result) if is_run else None,
        margin=f"{result.study.margin:g}",
        figures=[] if is_run else _over_shots(result, look),
        losses={"shift": loss_tables(result, "drop"), "vision": loss_tables(result, "use")},
        examples=examples,
        words=words,
    )


def _over_shots(result: StudyResult, look: Looks) -> list[Figure]:
    """Return the figures over shots, each titled with its setting if there are several."""
    figures = []
    for setting in result.study.settings:
        several = f": {setting.name}" if len(result.study.settings) > 1 else ""
        drawn = [accuracy_figure] if result.of_runs else [accuracy_figure, gain_figure]
        for metric, draw in itertools.product(setting.metrics, drawn):
            if (figure := draw(result, look, setting=setting.name, metric=metric)) is not None:
                figures.append(dataclasses.replace(figure, title=figure.title + several))
    return figures
