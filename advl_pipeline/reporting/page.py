"""The HTML page: one file, no request, everything escaped by the template engine.

This module only arranges: numbers come from `StudyResult`, words from `wording`, pictures from the figure modules.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from advl_pipeline.reporting import wording
from advl_pipeline.reporting.examples import ExampleSet, WordSet
from advl_pipeline.reporting.figure import Figure, Look, anchor, looks
from advl_pipeline.reporting.figures_accuracy import accuracy_figure, gain_figure
from advl_pipeline.reporting.figures_rows import (
    drop_figure,
    forest_axis,
    forest_row,
    mini_bar,
    text_share_figure,
    vision_figure,
)
from advl_pipeline.reporting.figures_training import calibration_figure, weight_figure
from advl_pipeline.reporting.tables import readout_tables, wide_tables
from advl_pipeline.studies.claim_tests import NOT_SUPPORTED, SUPPORTED, UNDECIDED, ClaimTest
from advl_pipeline.studies.claims import Verdict, judge_claims
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.result import StudyResult

_OUTCOME_CLASS = {SUPPORTED: "supported", NOT_SUPPORTED: "failed", UNDECIDED: "undecided"}


PART_NAMES = {
    "student": "student and task",
    "vision": "vision pathway",
    "text": "language pathway",
    "contrast": "contrast (adapt step)",
    "reading": "reading features (behind)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TestView:
    """One test of a verdict as the page shows it."""

    name: str
    svg: Markup
    mean: str
    interval: str
    p_value: str
    outcome_class: str
    outcome: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictView:
    """One verdict as the page shows it."""

    verdict: Verdict
    outcome_class: str
    tests: tuple[TestView, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A section made of figures."""

    identifier: str
    title: str
    figures: tuple[Figure, ...]


def render_page(result: StudyResult, examples: Sequence[ExampleSet], words: Sequence[WordSet]) -> str:
    """Render the report of a study as one HTML document."""
    look = looks(result.study)
    verdicts = judge_claims(result)
    reach = _reach(result, verdicts)
    style, script = _asset("page.css"), _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("advl_pipeline.reporting", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    environment.globals.update(wording=wording, shots_label=shots_label)
    return environment.get_template("page.html").render(
        result=result,
        study=result.study,
        look=look,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        headline=_headline(verdicts),
        verdicts=_verdict_views(result, verdicts, reach),
        axis=Markup(forest_axis(reach=reach)),
        notes=list(dict.fromkeys(note for verdict in verdicts for note in verdict.notes)),
        margin=f"{result.study.margin:g}",
        readouts=readout_tables(result),
        tables=wide_tables(result),
        bars=_bars(result),
        sections=_sections(result, look),
        examples=examples,
        words=words,
        parts=PART_NAMES,
        cost_share=_cost_shares(result),
        caches=[_pretty(dataclasses.asdict(cache)) for cache in result.caches],
        environments=[_pretty(dict(item)) for item in result.environments],
    )


def _headline(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.outcome for verdict in verdicts)
    parts = [f"{counts[outcome]} {outcome}" for outcome in (SUPPORTED, NOT_SUPPORTED, UNDECIDED) if counts[outcome]]
    return f"Of {len(verdicts)} claims: {', '.join(parts)}."


def _reach(result: StudyResult, verdicts: Sequence[Verdict]) -> float:
    """Half the length of the strips' axis, in points.

    Few seeds give wild intervals; the axis shows what matters, and an interval that leaves it has no end cap.
    """
    ends = [
        abs(end)
        for verdict in verdicts
        for test in verdict.tests
        for end in ((test.mean,) if test.interval is None else (test.mean, test.interval.low, test.interval.high))
    ]
    return min(max([*ends, result.study.margin]) * 1.05, 15.0)


def _verdict_views(result: StudyResult, verdicts: Sequence[Verdict], reach: float) -> list[VerdictView]:
    views = []
    for number, verdict in enumerate(verdicts):
        tests = tuple(
            _test_view(test, reach, result.study.margin, identifier=f"test-{number}-{position}")
            for position, test in enumerate(verdict.tests)
        )
        views.append(VerdictView(verdict=verdict, outcome_class=_OUTCOME_CLASS[verdict.outcome], tests=tests))
    return views


def _test_view(test: ClaimTest, reach: float, margin: float, *, identifier: str) -> TestView:
    return TestView(
        name=test.name,
        svg=Markup(forest_row(test, reach=reach, margin=margin, identifier=identifier)),
        mean=wording.signed(test.mean),
        interval=wording.interval(test.interval),
        p_value=wording.p_value(test.p_adjusted),
        outcome_class=_OUTCOME_CLASS[test.outcome],
        outcome=test.outcome,
    )


def _bars(result: StudyResult) -> dict[tuple[str, str, Any], Markup]:
    """Interval bars of the table: (method, baseline, place) -> picture."""
    ends = [
        abs(end)
        for contrast in result.contrasts
        for end in (contrast.comparison.joint_interval.low, contrast.comparison.joint_interval.high)
    ]
    reach = max(ends, default=1.0)
    return {
        (contrast.treated, contrast.baseline, contrast.place): Markup(
            mini_bar(contrast.comparison.joint_interval, contrast.comparison.effect.points, reach=reach)
        )
        for contrast in result.contrasts
    }


def _sections(result: StudyResult, look: dict[str, Look]) -> list[Section]:
    pairs = [(setting.name, metric) for setting in result.study.settings for metric in setting.metrics]
    drawn = {
        "accuracy": [accuracy_figure(result, look, setting=s, metric=m) for s, m in pairs],
        "gain": [gain_figure(result, look, setting=s, metric=m) for s, m in pairs],
        "shift": [drop_figure(result, look, setting=s, metric=m) for s, m in pairs],
        "vision": [
            draw(result, look, setting=s, metric=m) for s, m in pairs for draw in (vision_figure, text_share_figure)
        ],
        "weights": [weight_figure(result, look, setting=setting.name) for setting in result.study.settings],
        "calibration": [calibration_figure(result, look, setting=s, metric=m) for s, m in pairs],
    }
    titles = {
        "accuracy": "Accuracy over shots",
        "gain": "Gain over shots",
        "shift": "Shifted test sets",
        "vision": "Use of vision",
        "weights": "Confidence weights",
        "calibration": "Calibration",
    }
    several = len(result.study.settings) > 1
    sections = []
    for name, figures in drawn.items():
        kept = [figure for figure in figures if figure is not None]
        if several:
            kept = [dataclasses.replace(figure, title=f"{figure.title}: {_where(result, figure)}") for figure in kept]
        if kept:
            sections.append(Section(identifier=name, title=titles[name], figures=tuple(kept)))
    return sections


def _where(result: StudyResult, figure: Figure) -> str:
    """Name the setting that a figure's id begins with."""
    number = figure.identifier.split("-")[1]
    return next(setting.name for setting in result.study.settings if anchor(result, setting.name) == number)


def _cost_shares(result: StudyResult) -> dict[tuple[str, str, int | None], float]:
    """Seconds per step of each method relative to the slowest, in percent: the length of its bar."""
    slowest = max((cost.seconds_per_step for cost in result.costs), default=0.0)
    return {
        (cost.setting, cost.method, cost.shots): 100 * cost.seconds_per_step / slowest if slowest else 0.0
        for cost in result.costs
    }


def _policy(style: str, script: str) -> str:
    """Content security policy: nothing is loaded, and only this style sheet and this script are in force."""

    def digest(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _asset(name: str) -> str:
    return resources.files("advl_pipeline.reporting").joinpath("assets", name).read_text(encoding="utf-8")
