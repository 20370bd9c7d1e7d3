"""Figures of accuracy and of gain over shots, one panel per test set, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from advl_pipeline.evaluation.statistics import Spread
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.figure import Figure, Look, Panel, anchor, distinct
from advl_pipeline.reporting.svg import Canvas, linear, logarithmic, nice_ticks
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.result import StudyResult

_WIDTH, _HEIGHT = 340.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 12.0, 10.0, 34.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    size: int
    label: str
    value: Spread


def accuracy_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Accuracy over shots; None without a measured place."""
    curves: dict[str, dict[str, list[_Point]]] = {}
    runs: list[str] = []
    for standing in sorted(result.standings, key=lambda item: item.place.size):
        place = standing.place
        if (place.setting, place.metric) == (setting, metric):
            point = _Point(size=place.size, label=shots_label(place.shots), value=standing.accuracy)
            curves.setdefault(place.test_set, {}).setdefault(standing.method, []).append(point)
            runs += standing.runs
    if not curves:
        return None
    return _figure(
        curves,
        look,
        identifier=f"accuracy-{anchor(result, setting, metric)}",
        title=f"{wording.metric_name(metric)} in percent",
        caption="Means over seeds; bars span the 95 % interval of the mean.",
        runs=runs,
        write=wording.percent,
        zero=False,
    )


def gain_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Gain over the study's baseline, paired by seed.

    A student that never sees a picture is left out: what it lacks would set the scale of the figure, and beside it
    no gain of a method could be seen.
    """
    curves: dict[str, dict[str, list[_Point]]] = {}
    runs: list[str] = []
    blind = {name for name in result.study.methods if result.study.variant(name).training.get("hide_picture")}
    for trend in result.trends:
        if (trend.setting, trend.metric) == (setting, metric) and trend.treated not in blind:
            curves.setdefault(trend.test_set, {})[trend.treated] = [
                _Point(size=size, label=shots_label(shots), value=gain)
                for size, shots, gain in zip(trend.sizes, trend.shots, trend.gains, strict=True)
            ]
    for standing in result.standings:
        if (standing.place.setting, standing.place.metric) == (setting, metric) and standing.method not in blind:
            runs += standing.runs
    if not curves:
        return None
    return _figure(
        curves,
        look,
        identifier=f"gain-{anchor(result, setting, metric)}",
        title=f"Gain over {wording.method_label(result.study, result.study.baseline)}",
        caption=(
            "Difference in points of the same metric, paired by seed; bars span its 95 % interval over seeds. "
            "A method helps where its bar clears zero, and the teacher helps where it also clears the controls."
            + (" The student that sees no picture stands in the table." if blind else "")
        ),
        runs=runs,
        write=wording.signed,
        zero=True,
    )


def _figure(
    curves: Mapping[str, Mapping[str, Sequence[_Point]]],
    look: Mapping[str, Look],
    *,
    identifier: str,
    title: str,
    caption: str,
    runs: Sequence[str],
    write: Callable[[float], str],
    zero: bool,
) -> Figure:
    points = [point for by_method in curves.values() for line in by_method.values() for point in line]
    ends = [end for point in points for end in _ends(point.value)]
    # The t-interval of few seeds reaches beyond what a share can be.
    ends = [*ends, 0.0] if zero else [min(max(end, 0.0), 100.0) for end in ends]
    ticks = nice_ticks(min(ends), max(ends))
    sizes = sorted({(point.size, point.label) for point in points})
    panels = tuple(
        Panel(
            heading=test_set,
            svg=_panel(
                by_method,
                look,
                ticks,
                sizes,
                write,
                zero,
                identifier=f"{identifier}-{number}",
                title=f"{title}, {test_set}",
            ),
        )
        for number, (test_set, by_method) in enumerate(curves.items())
    )
    rows = tuple(
        (test_set, look[method].label, point.label, write(point.value.mean), wording.interval(point.value.interval))
        if zero
        else (test_set, look[method].label, point.label, write(point.value.mean), _plain_interval(point.value))
        for test_set, by_method in curves.items()
        for method, line in by_method.items()
        for point in line
    )
    return Figure(
        identifier=identifier,
        title=title,
        caption=caption,
        panels=panels,
        series=distinct(method for by_method in curves.values() for method in by_method),
        columns=("test set", "method", "shots", "mean", "95 % interval"),
        rows=rows,
        runs=distinct(runs),
    )


def _panel(
    by_method: Mapping[str, Sequence[_Point]],
    look: Mapping[str, Look],
    ticks: Sequence[float],
    sizes: Sequence[tuple[int, str]],
    write: Callable[[float], str],
    zero: bool,
    *,
    identifier: str,
    title: str,
) -> str:
    told = [
        f"{look[method].label}: " + ", ".join(f"{write(point.value.mean)} at {point.label}" for point in line)
        for method, line in by_method.items()
    ]
    canvas = Canvas(
        width=_WIDTH, height=_HEIGHT, identifier=identifier, title=title, description="; ".join(told) + "."
    )
    y = linear((ticks[0], ticks[-1]), (_HEIGHT - _BOTTOM, _TOP))
    inner = (_LEFT + 22, _WIDTH - _RIGHT - 22)
    low, high = sizes[0][0], sizes[-1][0]
    x = logarithmic((low, high), inner) if low != high else linear((low, high), inner)
    for tick in ticks:
        is_zero = zero and tick == 0
        canvas.line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "zero" if is_zero else "grid")
        label = wording.signed_tick(tick) if zero else f"{tick:g}"
        canvas.text(_LEFT - 6, y(tick) + 3.5, label, "tick", anchor="end")
    for size, label in sizes:
        canvas.text(x(size), _HEIGHT - _BOTTOM + 16, label, "tick", anchor="middle")
    canvas.text(_WIDTH / 2 + _LEFT / 2, _HEIGHT - 4, "training questions", "axis", anchor="middle")
    # Side by side, so that intervals of one size do not cover each other.
    order = list(by_method)
    spacing = min(5.0, 36.0 / max(1, len(order)))
    for position, method in enumerate(order):
        offset = (position - (len(order) - 1) / 2) * spacing
        line, style = by_method[method], look[method]
        canvas.open_group("series", style.series)
        canvas.path([(x(point.size) + offset, y(point.value.mean)) for point in line], style.line)
        for point in line:
            at = x(point.size) + offset
            start, end = _ends(point.value)
            canvas.line(at, y(max(start, ticks[0])), at, y(min(end, ticks[-1])), f"bar {style.colour}")
            canvas.marker(at, y(point.value.mean), style.shape, style.point)
        canvas.close_group()
    return canvas.render()


def _ends(value: Spread) -> tuple[float, float]:
    return (value.interval.low, value.interval.high) if value.interval else (value.mean, value.mean)


def _plain_interval(value: Spread) -> str:
    if value.interval is None:
        return ""
    return f"[{wording.percent(value.interval.low)}, {wording.percent(value.interval.high)}]"
