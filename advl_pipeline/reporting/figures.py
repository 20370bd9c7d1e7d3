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
    PAPER,
    SOFT,
    Drawing,
    Figure,
    Look,
    as_figure,
    axes,
    mark,
    mark_level,
    mark_ticks,
    panel_width,
    round_ticks,
    row_axes,
    write_value,
)
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.table import Place, StudyResult, place_of, rows_of

_SMALL = 172.0
"""Width of a drawing of which two stand beside each other on a phone, and six on a desk: there are many of them."""

_FREE_COLOURS, _FREE_SHAPES = (2, 3, 4, 5, 6, 7), ("square", "diamond", "triangle")

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


def anchor(result: StudyResult, setting: str, metric: str = "") -> str:
    """Return a part of ids that is unique for a setting and metric, whatever characters their names hold."""
    position = [item.name for item in result.study.settings].index(setting)
    return f"{position}-{metric}" if metric else str(position)


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
        drawn = row_axes([look[row.method].label for row in ordered], ticks, width=panel_width(len(by_set)), head=16)
        for height, row in enumerate(ordered):
            style = look[row.method]
            drawn.plot(_inside(row, ticks), [height] * 2, color=style.colour, linewidth=1.8, gid=style.group)
            for value in row.per_seed:
                mark(drawn, value, height, style, size=4.0, faint=True)
            mark(drawn, row.mean, height, style, size=8.5)
            write_value(drawn, height, wording.percent(row.mean))
        for name, side in (("chance", "right"), ("majority", "left")):
            if name in trivial[test_set]:
                mark_level(drawn, trivial[test_set][name], name, side=side)
        shown = [(test_set, look[row.method].label, wording.percent(row.mean), _bounds(row)) for row in rows]
        drawings.append((test_set, drawn, shown))
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
    return _figure(result, rows[0], kind, drawings, series=(row.method for row in rows), **words)


def drop_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """From in-domain accuracy to shifted accuracy, one row per method; None without a shifted set."""
    rows = result.find("drop", setting=setting, metric=metric)
    return _losses(result, look, rows, "drop", metric=wording.metric_name(metric))


def vision_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """From accuracy with the picture to accuracy without it; None when no run was scored so."""
    reference = result.study.setting(setting).reference
    rows = result.find("use", setting=setting, metric=metric, test_set=reference)
    return _losses(result, look, rows, "vision", metric=wording.metric_name(metric), reference=reference)


def _losses(result: StudyResult, look: Looks, rows: list[Any], kind: str, **words: str) -> Figure | None:
    """Draw what is lost of accuracy as the change that it is."""
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        questions = wording.QUESTIONS[row.questions] if row.questions else ""
        sides = f"{row.against} → {row.test_set}" if questions else f"picture {row.against}"
        heading = ", ".join(filter(None, (sides, wording.shots_text(row.shots), questions)))
        wanted = {"method": row.method, "against": row.against}
        before, after, change = (
            result.one(f"{row.quantity} {side}", place_of(row), **wanted) for side in ("before", "after", "change")
        )
        spread = wording.signed(-row.mean) + ("" if row.deviation is None else f" ± {row.deviation:.1f}")
        more = (
            (wording.signed(-change.mean), wording.interval(change.interval and change.interval.negated()))
            if change
            else ("", "")
        )
        first = (row.test_set, questions) if questions else (row.against,)
        told = (*first, look[row.method].label, row.shots, spread, *more)
        drawn = (row.method, before.mean, after.mean, wording.signed(-row.mean))
        groups.setdefault(heading, []).append((*drawn, told))
    return _pairs_figure(result, look, rows, groups, kind, **words)


def text_share_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """Accuracy where the text alone suffices and where it does not; None without a text-only student."""
    reference = result.study.setting(setting).reference
    shares = result.find("text share", setting=setting, metric=metric, test_set=reference)
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for row in shares:
        wanted = {"method": row.method, "against": row.against}
        given, rest, change = (
            result.one(quantity, place_of(row), **wanted) for quantity in ("on given", "on rest", "on rest change")
        )
        alone = next(other for other in shares if other.shots == row.shots).mean
        heading = f"{wording.shots_text(row.shots)}: text alone {wording.percent(alone)} % right"
        more = (wording.signed(change.mean), wording.interval(change.interval)) if change else ("", "")
        told = (look[row.method].label, row.shots, *map(wording.spread, (row, given, rest)), *more)
        groups.setdefault(heading, []).append((row.method, rest.mean, given.mean, wording.percent(rest.mean), told))
    text_only = look[shares[0].against].label if shares else ""
    return _pairs_figure(
        result,
        look,
        shares,
        groups,
        "textshare",
        metric=wording.metric_name(metric),
        reference=reference,
        text_only=text_only,
    )


def _pairs_figure(
    result: StudyResult,
    look: Looks,
    rows: list[Any],
    groups: Mapping[str, list[tuple[Any, ...]]],
    kind: str,
    **words: str,
) -> Figure | None:
    """Draw one panel per group, all on one scale: a row per method from a filled mark to a hollow one.

    Args:
        groups: heading -> for each method its name, both ends, what is written beside them, and its row of numbers.
    """
    if not groups:
        return None
    ticks = round_ticks([end for group in groups.values() for pair in group for end in pair[1:3]])
    drawings: list[Drawing] = []
    for heading, group in groups.items():
        shown = group[::-1]
        drawn = row_axes([look[method].label for method, *_ in shown], ticks, width=panel_width(len(groups)))
        for height, (method, filled, hollow, text, _) in enumerate(shown):
            style = look[method]
            drawn.plot([hollow, filled], [height] * 2, color=style.colour, linewidth=1.8, gid=style.group)
            mark(drawn, hollow, height, style, hollow=True)
            mark(drawn, filled, height, style, hollow=False)
            write_value(drawn, height, text)
        drawings.append((heading, drawn, [pair[-1] for pair in group]))
    return _figure(result, rows[0], kind, drawings, **words)


def weight_figure(result: StudyResult, look: Looks, *, setting: str) -> Figure | None:
    """Distribution of the confidence weights of the focus method; None when no run logged any."""
    method = result.study.focus
    histograms = rows_of(result.weights, setting=setting, method=method)
    if not histograms:
        return None
    drawings: list[Drawing] = []
    for row in histograms:
        symbol = "w" if row.quantity == "weight" else "c_S" if row.modality == "student" else "c_T"
        what, top, style = f"{symbol}, {row.modality}", row.edges[-1], look[method]
        drawn = axes(_SMALL, 140, bottom=36, top=22)
        drawn.set_xlim(0, top)
        drawn.set_ylim(0, max(row.shares) or 1.0)
        width = top / len(row.shares)
        drawn.bar(row.edges[:-1], row.shares, width, align="edge", color=style.colour, edgecolor=PAPER, linewidth=1)
        drawn.axhline(0, color=SOFT, linewidth=1.2)
        name = "confidence weight" if symbol == "w" else "P(right answer)"
        mark_ticks(drawn, "x", [tick for tick in round_ticks([0.0, top]) if tick <= top], name=name)
        drawn.axvline(row.mean, color=INK, linewidth=1, linestyle=(0, (2, 3)))
        side, text = "left" if row.mean < top / 2 else "right", f" mean {row.mean:.2f} "
        drawn.text(row.mean, max(row.shares), text, color=INK, fontsize=12, ha=side, va="bottom")
        size, top_share = wording.shots_text(row.shots), f"{100 * row.shares[-1]:.0f} %"
        drawings.append(
            (f"{what}, {size}", drawn, [(what, row.shots, f"{row.mean:.2f}", top_share, wording.count(row.count))])
        )
    runs = (cell.run for cell in rows_of(result.cells, setting=setting, method=method))
    return as_figure("weights", drawings, identifier=f"weights-{anchor(result, setting)}", runs=runs)


def calibration_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """Accuracy against confidence on the in-domain test set at the smallest size; None without stored scores."""
    reference = result.study.setting(setting).reference
    found = rows_of(result.calibrations, setting=setting, metric=metric, test_set=reference)
    if not found:
        return None
    smallest = min(found, key=lambda row: place_of(row).rank)
    drawings: list[Drawing] = []
    for row in (row for row in found if row.shots == smallest.shots):
        style, bins = look[row.method], row.reliability.bins
        drawn = axes(_SMALL, _SMALL, left=30, right=12, bottom=36)
        drawn.set_xlim(0, 1)
        drawn.set_ylim(0, 1)
        mark_ticks(drawn, "y", [0.0, 0.5, 1.0], ["0", "50", "100"])
        mark_ticks(drawn, "x", [0.0, 0.5, 1.0], ["0", "50", "100"], name="confidence %")
        drawn.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2)
        sure, right = [one.confidence for one in bins], [one.accuracy for one in bins]
        drawn.plot(sure, right, color=style.colour, linewidth=1.8, gid=style.group)
        total = sum(one.count for one in bins)
        for one in bins:
            mark(drawn, one.confidence, one.accuracy, style, size=4 + 10 * (one.count / total) ** 0.5)
        error = f"{row.reliability.expected_error:.1f}"
        drawn.text(0.98, 0.05, f"ECE {error}", color=INK, fontsize=12, fontweight="bold", ha="right")
        told = ", ".join(f"{100 * one.accuracy:.0f} at {100 * one.confidence:.0f}" for one in bins)
        drawings.append((style.label, drawn, [(style.label, row.shots, error, told)]))
    return as_figure(
        "calibration",
        drawings,
        identifier=f"calibration-{anchor(result, setting, metric)}",
        runs=(run for row in result.find("accuracy", place_of(smallest)) for run in row.runs),
        reference=reference,
        shots=wording.shots_text(smallest.shots),
    )


def _figure(
    result: StudyResult,
    row: Any,
    kind: str,
    drawings: list[Drawing],
    *,
    series: Iterable[str] = (),
    **words: str,
) -> Figure:
    """Return drawings as the figure of the setting and the metric of a row, with all of their runs."""
    where = {"setting": row.setting, "metric": row.metric}
    return as_figure(
        kind,
        drawings,
        identifier=f"{kind}-{anchor(result, row.setting, row.metric)}",
        runs=(run for one in result.find("accuracy", **where) for run in one.runs),
        series=series,
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
