"""The figures of a study: each with its panels, a caption, the numbers behind it, and the runs that they come from.

A method has the same look in every figure. The colours are those of Okabe and Ito, told apart with any colour vision;
roles can be told without colour: controls are hollow and dashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from advl_pipeline.reporting import wording
from advl_pipeline.reporting.drawing import (
    INK,
    SOFT,
    Drawing,
    Figure,
    Look,
    as_figure,
    axes,
    mark,
    mark_ticks,
    panel_width,
    round_ticks,
)
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.table import Place, StudyResult, place_of

_FREE_COLOURS, _FREE_SHAPES = (2, 3, 4, 5, 6, 7), ("square", "diamond", "triangle")

_VALUES, _ROW, _LONGEST_NAME = 46.0, 25.0, 23
"""Room for a number beside a row, and for a row; and how many letters of a method's name are shown."""

Looks = Mapping[str, Look]


def looks(study: StudyConfig) -> dict[str, Look]:
    """Give every method of a study its look: grey for the baseline, blue for the focus, the rest in order."""
    given = {study.baseline: (0, "circle"), study.focus: (1, "circle")}
    for free, method in enumerate(name for name in study.methods if name not in given):
        given[method] = (_FREE_COLOURS[free % len(_FREE_COLOURS)], _FREE_SHAPES[free % len(_FREE_SHAPES)])
    return {
        method: Look(
            series=method,
            label=wording.method_label(study, method),
            number=given[method][0],
            shape=given[method][1],
            hollow=study.variant(method).role == "control",
        )
        for method in study.methods
    }


def anchor(result: StudyResult, setting: str, metric: str) -> str:
    """Return a part of ids that is unique for a setting and metric, whatever characters their names hold."""
    return f"{[item.name for item in result.study.settings].index(setting)}-{metric}"


def answer_figure(result: StudyResult, look: Looks, place: Place) -> Figure:
    """Every method at one size, with its controls, on each test set: what the first sentence of a report says."""
    where: dict[str, Any] = {"setting": place.setting, "metric": place.metric, "shots": place.shots}
    by_set = _grouped(result.find("accuracy", **where), "test_set")
    trivial = {name: result.trivial_of(place._replace(test_set=name)) for name in by_set}
    ends = [end for rows in by_set.values() for row in rows for end in (*_ends(row), *row.per_seed)]
    ends += [known[name] for known in trivial.values() for name in ("chance", "majority") if name in known]
    ticks = round_ticks(_percents(ends))
    drawings: list[Drawing] = []
    for test_set, rows in by_set.items():
        ordered = sorted(rows, key=lambda row: row.mean)
        width = panel_width(len(by_set))
        drawn = axes(width, 48 + _ROW * len(rows), left=0.3 * width + 46, right=_VALUES, top=20, bottom=24)
        drawn.set_xlim(ticks[0], ticks[-1])
        drawn.set_ylim(-0.6, len(rows) - 0.4)
        mark_ticks(drawn, "x", ticks)
        labels = (look[row.method].label for row in ordered)
        shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in labels]
        drawn.set_yticks(range(len(rows)), shown)
        drawn.tick_params(axis="y", length=0, pad=10, labelsize=12, labelcolor=INK)
        beside, above = drawn.get_yaxis_transform(), drawn.get_xaxis_transform()
        for height, row in enumerate(ordered):
            style, mean = look[row.method], wording.percent(row.mean)
            drawn.plot(_inside(row, ticks), [height] * 2, color=style.colour, linewidth=1.8, gid=style.group)
            for value in row.per_seed:
                mark(drawn, value, height, style, size=4.0, faint=True)
            mark(drawn, row.mean, height, style, size=8.5)
            drawn.text(1.02, height, mean, color=INK, fontsize=12, fontweight="bold", va="center", transform=beside)
        for name, side in (("chance", "right"), ("majority", "left")):
            if name in trivial[test_set]:
                level = trivial[test_set][name]
                drawn.axvline(level, color=SOFT, linewidth=1.2, linestyle=(0, (1.5, 3)))
                drawn.text(level, 1.04, name, color=SOFT, fontsize=11, ha=side, va="bottom", transform=above)
        told = [(test_set, look[row.method].label, wording.percent(row.mean), _bounds(row)) for row in rows]
        drawings.append((test_set, drawn, told))
    return as_figure(
        "answer",
        drawings,
        identifier=f"answer-{anchor(result, place.setting, place.metric)}",
        runs=(run for rows in by_set.values() for row in rows for run in row.runs),
        metric=wording.metric_name(place.metric),
        shots=wording.shots_text(place.shots),
    )


def accuracy_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """Accuracy over shots; None where there are not several sizes."""
    rows = result.find("accuracy", setting=setting, metric=metric)
    return _over_shots(result, look, rows, "accuracy", metric=wording.metric_name(metric))


def gain_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """Gain over the study's baseline, paired by seed; None where there are not several sizes.

    A student that never sees a picture is left out: what it lacks would set the scale of the figure, and beside it
    no gain of a method could be seen.
    """
    study = result.study
    blind = {name for name in study.methods if study.variant(name).training.get("hide_picture")}
    rows = [row for row in result.find("gain along shots", setting=setting, metric=metric) if row.method not in blind]
    told = " The student that sees no picture stands in the table." if blind else ""
    return _over_shots(result, look, rows, "gain", baseline=wording.method_label(study, study.baseline), blind=told)


def _over_shots(result: StudyResult, look: Looks, rows: list[Any], kind: str, **words: str) -> Figure | None:
    sizes = {row.size: row.shots for row in sorted(rows, key=lambda row: place_of(row).rank)}
    if len(sizes) < 2:
        return None
    gains = kind == "gain"
    ends = [end for row in rows for end in _ends(row)]
    # The t-interval of few seeds reaches beyond what a share can be.
    ticks = round_ticks([*ends, 0.0] if gains else _percents(ends))
    write = wording.signed if gains else wording.percent
    by_set = _grouped(sorted(rows, key=lambda row: row.size), "test_set")
    drawings: list[Drawing] = []
    for test_set, found in by_set.items():
        drawn = axes(panel_width(len(by_set)), 250, left=38, right=10, bottom=38)
        drawn.set_xscale("log", base=2)
        drawn.set_xlim(min(sizes) / 1.25, max(sizes) * 1.25)
        drawn.set_ylim(ticks[0], ticks[-1])
        drawn.minorticks_off()
        mark_ticks(drawn, "y", ticks, [wording.signed_tick(tick) for tick in ticks] if gains else None)
        mark_ticks(drawn, "x", list(map(float, sizes)), list(sizes.values()), name="training questions")
        if gains:
            drawn.axhline(0, color=SOFT, linewidth=1.2, zorder=1)
        lines = _grouped(found, "method")
        for position, (method, line) in enumerate(lines.items()):
            # Side by side, so that intervals of one size do not cover each other.
            shift = 1.03 ** (position - (len(lines) - 1) / 2)
            style, xs, means = look[method], [row.size * shift for row in line], [row.mean for row in line]
            dashes = (0, (5, 4)) if style.hollow else "-"
            drawn.plot(xs, means, color=style.colour, linewidth=1.8, linestyle=dashes, gid=style.group)
            for x, row in zip(xs, line, strict=True):
                drawn.plot([x, x], _inside(row, ticks), color=style.colour, linewidth=1.6, gid=style.group)
                mark(drawn, x, row.mean, style)
        shown = [
            (test_set, look[method].label, row.shots, write(row.mean), _bounds(row, signed=gains))
            for method, line in lines.items()
            for row in line
        ]
        drawings.append((test_set, drawn, shown))
    where = {"setting": rows[0].setting, "metric": rows[0].metric}
    return as_figure(
        kind,
        drawings,
        identifier=f"{kind}-{anchor(result, *where.values())}",
        runs=(run for row in result.find("accuracy", **where) for run in row.runs),
        series=(row.method for row in rows),
        **words,
    )


def _grouped(rows: Iterable[Any], column: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(getattr(row, column), []).append(row)
    return found


def _ends(row: Any) -> tuple[float, float]:
    return (row.interval.low, row.interval.high) if row.interval else (row.mean, row.mean)


def _percents(values: Iterable[float]) -> list[float]:
    return [min(max(value, 0.0), 100.0) for value in values]


def _inside(row: Any, ticks: list[float]) -> list[float]:
    return [min(max(end, ticks[0]), ticks[-1]) for end in _ends(row)]


def _bounds(row: Any, *, signed: bool = False) -> str:
    if row.interval is None:
        return ""
    write = wording.signed if signed else wording.percent
    return f"[{write(row.interval.low)}, {write(row.interval.high)}]"
