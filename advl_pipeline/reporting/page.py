"""The HTML page of a study or of a run: one file, no request, everything escaped by the template engine.

This module only arranges: numbers come from `StudyResult` and the run folder, words from `wording`, drawings from
`figures`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from advl_pipeline.reporting import wording
from advl_pipeline.reporting.answer import answers, nothing_yet
from advl_pipeline.reporting.examples import ExampleSet, WordSet
from advl_pipeline.reporting.figures import (
    Figure,
    Look,
    accuracy_figure,
    anchor,
    answer_figure,
    calibration_figure,
    claim_axis,
    claim_strip,
    drop_figure,
    gain_figure,
    looks,
    text_share_figure,
    vision_figure,
    weight_figure,
)
from advl_pipeline.reporting.run_view import view_run
from advl_pipeline.reporting.tables import readout_tables, wide_tables
from advl_pipeline.studies.claim_tests import NOT_SUPPORTED, SUPPORTED, UNDECIDED
from advl_pipeline.studies.claims import Verdict, judge_claims
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.result import StudyResult

_OUTCOME_CLASS = {SUPPORTED: "supported", NOT_SUPPORTED: "failed", UNDECIDED: "undecided"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A section made of figures."""

    identifier: str
    title: str
    figures: tuple[Figure, ...]


def render_page(result: StudyResult, examples: Sequence[ExampleSet], words: Sequence[WordSet]) -> str:
    """Render the report of a study, of several runs, or of one run as one HTML document."""
    look = looks(result.study)
    is_run = result.of_runs and len(result.cells) == 1
    verdicts = judge_claims(result)
    found = answers(result)
    style, script = _asset("page.css"), _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("advl_pipeline.reporting", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(wording=wording, shots_label=shots_label)
    return environment.get_template("run.html" if is_run else "study.html").render(
        result=result,
        study=result.study,
        look=look,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        answers=found,
        nothing_yet=nothing_yet(result),
        answer_figures=[] if is_run else [answer_figure(result, look, answer.place) for answer in found],
        run=view_run(result) if is_run else None,
        verdicts=_verdict_views(result, verdicts),
        axis=claim_axis(reach=_reach(result, verdicts)),
        notes=list(dict.fromkeys(note for verdict in verdicts for note in verdict.notes)),
        margin=f"{result.study.margin:g}",
        readouts=readout_tables(result),
        tables=wide_tables(result),
        sections=_sections(result, look),
        examples=examples,
        words=words,
        caches=[_pretty(dataclasses.asdict(cache)) for cache in result.caches],
        environments=[_pretty(dict(item)) for item in result.environments],
    )


def _reach(result: StudyResult, verdicts: Sequence[Verdict]) -> float:
    """Half the length of the strips' axis, in points.

    Few seeds give wild intervals; the axis shows what matters, and an interval that leaves it is cut.
    """
    ends = [
        abs(end)
        for verdict in verdicts
        for test in verdict.tests
        for end in ((test.mean,) if test.interval is None else (test.mean, test.interval.low, test.interval.high))
    ]
    return min(max([*ends, result.study.margin, 1.0]) * 1.05, 15.0)


def _verdict_views(result: StudyResult, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return each verdict with what the page shows of its tests."""
    reach = _reach(result, verdicts)
    return [
        {
            "verdict": verdict,
            "outcome_class": _OUTCOME_CLASS[verdict.outcome],
            "tests": [
                {
                    "name": test.name,
                    "svg": claim_strip(
                        test, reach=reach, margin=result.study.margin, identifier=f"test-{number}-{position}"
                    ),
                    "mean": wording.signed(test.mean),
                    "interval": wording.interval(test.interval),
                    "p_value": wording.p_value(test.p_adjusted),
                }
                for position, test in enumerate(verdict.tests)
            ],
        }
        for number, verdict in enumerate(verdicts)
    ]


def _sections(result: StudyResult, look: dict[str, Look]) -> dict[str, Section]:
    pairs = [(setting.name, metric) for setting in result.study.settings for metric in setting.metrics]
    drawn = {
        "shots": (
            "Over shots",
            [draw(result, look, setting=s, metric=m) for s, m in pairs for draw in (accuracy_figure, gain_figure)],
        ),
        "shift": ("Shifted test sets", [drop_figure(result, look, setting=s, metric=m) for s, m in pairs]),
        "vision": (
            "Use of vision",
            [
                draw(result, look, setting=s, metric=m)
                for s, m in pairs
                for draw in (vision_figure, text_share_figure)
            ],
        ),
        "weights": (
            "Confidence weights",
            [weight_figure(result, look, setting=setting.name) for setting in result.study.settings],
        ),
        "calibration": ("Calibration", [calibration_figure(result, look, setting=s, metric=m) for s, m in pairs]),
    }
    several = len(result.study.settings) > 1
    sections = {}
    for name, (title, figures) in drawn.items():
        kept = [figure for figure in figures if figure is not None]
        if several:
            kept = [dataclasses.replace(figure, title=f"{figure.title}: {_where(result, figure)}") for figure in kept]
        if kept:
            sections[name] = Section(identifier=name, title=title, figures=tuple(kept))
    return sections


def _where(result: StudyResult, figure: Figure) -> str:
    """Name the setting that a figure's id begins with."""
    number = figure.identifier.split("-")[1]
    return next(setting.name for setting in result.study.settings if anchor(result, setting.name) == number)


def _policy(style: str, script: str) -> str:
    """Content security policy: nothing is loaded, and only this style sheet and this script are in force."""

    def digest(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _asset(name: str) -> str:
    return resources.files("advl_pipeline.reporting").joinpath("assets", name).read_text(encoding="utf-8")
