"""Figures with one row per method: verdict forests, shift drops, use of vision, costs.

Rows keep their order from the study; each row is a group that the legend can emphasise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from advl_pipeline.evaluation.statistics import Interval, Spread
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.figure import Figure, Look, Panel, anchor, distinct, in_domain
from advl_pipeline.reporting.svg import Canvas, linear, nice_ticks
from advl_pipeline.studies.claim_tests import ClaimTest
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.result import Loss, StudyResult

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

_ROW = 24.0
_WIDTH = 340.0
_NAMES = 140.0


def forest_row(test: ClaimTest, *, reach: float, margin: float, identifier: str) -> str:
    """Draw one test of a claim: mean, 95 % interval over seeds, single seeds, zero, and the margin that matters.

    The interval over seeds and items is the thin line underneath.

    Args:
        test: what was tested, in points; positive is in favour of the claim.
        reach: the axis spans [-reach, reach], the same for all tests of a page.
        margin: smallest gain that would matter.
        identifier: unique on the page.
    """
    canvas = Canvas(
        width=300,
        height=30,
        identifier=identifier,
        title=test.name,
        description=f"Mean {wording.signed(test.mean)} {test.unit}, 95 % interval {wording.interval(test.interval)}.",
    )
    x = linear((-reach, reach), (6, 294))
    canvas.rect(x(0), 3, x(margin) - x(0), 24, "margin")
    canvas.line(x(0), 0, x(0), 30, "zero")
    low, high = max(test.joint_interval.low, -reach), min(test.joint_interval.high, reach)
    canvas.line(x(low), 22, x(high), 22, "joint")
    if test.interval is not None:
        low, high = max(test.interval.low, -reach), min(test.interval.high, reach)
        canvas.line(x(low), 15, x(high), 15, "bar c1")
        for end in (test.interval.low, test.interval.high):
            if -reach <= end <= reach:
                canvas.line(x(end), 11, x(end), 19, "bar c1")
    for value in test.per_seed:
        if -reach <= value <= reach:
            canvas.marker(x(value), 15, "circle", "seed c1", radius=2.2)
    canvas.marker(x(min(max(test.mean, -reach), reach)), 15, "circle", "point c1", radius=4.6)
    return canvas.render()


def forest_axis(*, reach: float) -> str:
    """Draw the axis that all strips share; decorative, the strips carry their numbers as text."""
    x = linear((-reach, reach), (6, 294))
    ticks = "".join(
        f'<text x="{x(tick):.1f}" y="11" text-anchor="middle">{wording.signed_tick(tick)}</text>'
        for tick in nice_ticks(-reach, reach, about=7)
        if abs(tick) <= reach
    )
    return f'<svg viewBox="0 0 300 16" aria-hidden="true" focusable="false">{ticks}</svg>'


def mini_bar(interval: Interval, mean: float, *, reach: float) -> str:
    """Draw an interval in a table cell; decorative, the cell holds the same numbers as text."""
    x = linear((-reach, reach), (2, 62))
    low, high = max(interval.low, -reach), min(interval.high, reach)
    side = "up" if interval.low > 0 else "down" if interval.high < 0 else "open"
    return (
        f'<svg class="mini {side}" viewBox="0 0 64 12" aria-hidden="true" focusable="false">'
        f'<line class="zero" x1="{x(0):.1f}" y1="0" x2="{x(0):.1f}" y2="12"/>'
        f'<line class="bar" x1="{x(low):.1f}" y1="6" x2="{x(high):.1f}" y2="6"/>'
        f'<circle class="point" cx="{x(min(max(mean, -reach), reach)):.1f}" cy="6" r="2.6"/></svg>'
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One method: the filled end, the hollow end, and what is written beside them."""

    method: str
    filled: float
    hollow: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """The rows of one panel, its heading, and its text alternative's title."""

    heading: str
    title: str
    rows: tuple[_Row, ...]


def drop_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """From in-domain accuracy to shifted accuracy, one row per method; None without a shifted set."""
    drops = [
        item for item in result.losses_of("drop") if (item.place.setting, item.place.metric) == (setting, metric)
    ]
    if not drops:
        return None
    groups = []
    for (test_set, shots), inside in _grouped(drops, lambda item: (item.place.test_set, item.place.shots)):
        reference, size = inside[0].against, wording.shots_text(shots)
        questions = wording.QUESTIONS[inside[0].questions or "same"]
        groups.append(
            _Group(
                heading=f"{reference} → {test_set}, {size}, {questions}",
                title=f"Accuracy from {reference} to {test_set} at {size}, {questions}",
                rows=tuple(map(_loss_row, inside)),
            )
        )
    rows = tuple(
        (
            item.place.test_set,
            wording.QUESTIONS[item.questions or "same"],
            look[item.method].label,
            shots_label(item.place.shots),
            wording.spread(item.lost),
            *_change(item.change),
        )
        for item in drops
    )
    return _figure(
        look,
        groups,
        identifier=f"drop-{anchor(result, setting, metric)}",
        title="What the shift costs",
        caption=(
            f"{wording.metric_name(metric)} on the original test set (filled) and on the shifted one (hollow), means "
            "over seeds; the number is what is lost, in points. Where the shifted set asks the same questions "
            "otherwise, both are over the questions that the two sets share."
        ),
        columns=("shifted set", "questions", "method", "shots", "drop", "drop minus the baseline's", "95 % interval"),
        rows=rows,
        runs=_runs(result, setting, metric),
    )


def vision_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """From accuracy with the picture to accuracy without it; None when no run was scored so."""
    reference, uses = in_domain(result, result.losses_of("use"), setting, metric)
    if not uses:
        return None
    groups = [
        _Group(
            heading=f"picture {kind}, {wording.shots_text(shots)}",
            title=f"Accuracy with the picture and with it {kind}, {wording.shots_text(shots)}",
            rows=tuple(map(_loss_row, inside)),
        )
        for (kind, shots), inside in _grouped(uses, lambda item: (item.against, item.place.shots))
    ]
    rows = tuple(
        (
            item.against,
            look[item.method].label,
            shots_label(item.place.shots),
            wording.spread(item.lost),
            *_change(item.change),
        )
        for item in uses
    )
    return _figure(
        look,
        groups,
        identifier=f"vision-{anchor(result, setting, metric)}",
        title="What hangs on the picture",
        caption=(
            f"{wording.metric_name(metric)} on {reference} with the true picture (filled) and with a spoilt one "
            "(hollow). The longer the line, the more the answers hang on the picture."
        ),
        columns=("picture", "method", "shots", "use", "use minus the baseline's", "95 % interval"),
        rows=rows,
        runs=_runs(result, setting, metric),
    )


def text_share_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Accuracy where the text alone suffices and where it does not; None without a text-only student."""
    reference, shares = in_domain(result, result.text_shares, setting, metric)
    if not shares:
        return None
    groups = [
        _Group(
            heading=f"{wording.shots_text(shots)}: text alone {wording.percent(inside[0].share.mean)} % right",
            title=f"Accuracy where the text alone fails and where it suffices, {wording.shots_text(shots)}",
            rows=tuple(
                _Row(
                    method=item.method,
                    filled=item.on_rest.mean,
                    hollow=item.on_given.mean,
                    text=wording.percent(item.on_rest.mean),
                )
                for item in inside
            ),
        )
        for shots, inside in _grouped(shares, lambda item: item.place.shots)
    ]
    rows = tuple(
        (
            look[item.method].label,
            shots_label(item.place.shots),
            wording.spread(item.share),
            wording.spread(item.on_given),
            wording.spread(item.on_rest),
            *_change(item.change),
        )
        for item in shares
    )
    return _figure(
        look,
        groups,
        identifier=f"textshare-{anchor(result, setting, metric)}",
        title="What the texts alone give away",
        caption=(
            f"{wording.metric_name(metric)} on {reference}, split by what a text-only student of the same seed, "
            f"trained on the same questions without pictures ({look[shares[0].text_only].label}), gets right: "
            "accuracy on the items that it gets wrong (filled) and on those that it gets right (hollow). The number "
            "is the former: only there can a picture have helped."
        ),
        columns=(
            "method",
            "shots",
            "text alone right, %",
            "accuracy there",
            "accuracy elsewhere",
            "elsewhere minus the baseline's",
            "95 % interval",
        ),
        rows=rows,
        runs=_runs(result, setting, metric),
    )


def _loss_row(item: Loss) -> _Row:
    text = wording.signed(-item.lost.mean)
    return _Row(method=item.method, filled=item.before.mean, hollow=item.after.mean, text=text)


def _grouped(items: Sequence[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """Return the items by key, in the order in which the keys first occur."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.items())


def _change(change: Spread | None) -> tuple[str, str]:
    """Return the last two columns: the difference from the baseline and its interval."""
    return (wording.signed(change.mean), wording.interval(change.interval)) if change else ("", "")


def _figure(
    look: Mapping[str, Look],
    groups: Sequence[_Group],
    *,
    identifier: str,
    title: str,
    caption: str,
    columns: tuple[str, ...],
    rows: tuple[tuple[str, ...], ...],
    runs: tuple[str, ...],
) -> Figure:
    """Draw one panel per group, all on one scale."""
    ends = [end for group in groups for row in group.rows for end in (row.filled, row.hollow)]
    ticks = nice_ticks(min(ends), max(ends))
    return Figure(
        identifier=identifier,
        title=title,
        caption=caption,
        panels=tuple(
            Panel(
                heading=group.heading,
                svg=_dumbbells(group.rows, look, ticks, identifier=f"{identifier}-{number}", title=group.title),
            )
            for number, group in enumerate(groups)
        ),
        series=distinct(row.method for group in groups for row in group.rows),
        columns=columns,
        rows=rows,
        runs=runs,
    )


def _dumbbells(
    rows: Sequence[_Row],
    look: Mapping[str, Look],
    ticks: Sequence[float],
    *,
    identifier: str,
    title: str,
) -> str:
    height = 8 + _ROW * len(rows) + 22
    told = [
        f"{look[row.method].label}: {wording.percent(row.filled)} to {wording.percent(row.hollow)} ({row.text})"
        for row in rows
    ]
    canvas = Canvas(
        width=_WIDTH, height=height, identifier=identifier, title=title, description="; ".join(told) + "."
    )
    x = linear((ticks[0], ticks[-1]), (_NAMES + 8, _WIDTH - 44))
    for tick in ticks:
        canvas.line(x(tick), 4, x(tick), height - 20, "grid")
        canvas.text(x(tick), height - 6, f"{tick:g}", "tick", anchor="middle")
    for number, row in enumerate(rows):
        style, y = look[row.method], 8 + _ROW * (number + 0.5)
        canvas.open_group("series", style.series)
        canvas.text(_NAMES, y + 4, _shorten(style.label), "name", anchor="end")
        canvas.line(x(row.filled), y, x(row.hollow), y, f"bar {style.colour}")
        canvas.marker(x(row.hollow), y, style.shape, f"point {style.colour} hollow")
        canvas.marker(x(row.filled), y, style.shape, f"point {style.colour}")
        canvas.text(_WIDTH, y + 4, row.text, "value", anchor="end")
        canvas.close_group()
    return canvas.render()


def _shorten(label: str, *, limit: int = 23) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _runs(result: StudyResult, setting: str, metric: str) -> tuple[str, ...]:
    return distinct(
        run
        for standing in result.standings
        if (standing.place.setting, standing.place.metric) == (setting, metric)
        for run in standing.runs
    )
