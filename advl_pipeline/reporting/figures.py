"""The figures of a report: each with its panels, a caption, the numbers behind it, and the runs that they come from.

A method has the same look in every figure. The colours are those of Okabe and Ito, told apart with any colour vision;
roles can be told without colour: controls are hollow and dashed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from advl_pipeline.evaluation.statistics import Spread
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.drawing import (
    BAND,
    INK,
    PAPER,
    SERIES,
    SOFT,
    as_svg,
    axes,
    mark_ticks,
    series_of,
)
from advl_pipeline.studies.claim_tests import ClaimTest
from advl_pipeline.studies.config import StudyConfig, shots_label
from advl_pipeline.studies.result import Loss, Place, StudyResult

_WIDTH, _WIDE = 350.0, {1: 640.0, 2: 530.0}
"""Of a drawing, among three or more in a figure, or among so few; together they are as wide as the page."""

_NAMES, _VALUES, _ROW = 142.0, 46.0, 25.0
_SMALL = 172.0
"""Two panels beside each other on a phone, six on a desk: there are many of them."""

_FREE_COLOURS = (2, 3, 4, 5, 6, 7)
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a method is drawn; `series` is its name on the page."""

    series: str
    label: str
    number: int
    shape: str
    hollow: bool

    @property
    def colour(self) -> str:
        return SERIES[self.number]


def looks(study: StudyConfig) -> dict[str, Look]:
    """Give every method of a study its look: grey for the baseline, blue for the focus, the rest in order."""
    found: dict[str, Look] = {}
    free = 0
    for method in study.methods:
        number, shape = {study.baseline: (0, "circle"), study.focus: (1, "circle")}.get(method, (-1, ""))
        if number < 0:
            number, shape = _FREE_COLOURS[free % len(_FREE_COLOURS)], [*_MARKERS][1 + free % 3]
            free += 1
        found[method] = Look(
            series=method,
            label=wording.method_label(study, method),
            number=number,
            shape=shape,
            hollow=study.variant(method).role == "control",
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One drawing of a figure with its heading."""

    heading: str
    svg: Markup


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What a section shows. `series` are the methods in it, for the legend; `rows` repeat every number drawn."""

    identifier: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[str, ...]
    series: tuple[str, ...] = ()
    wide: bool = False
    """Whether a phone shows the drawings smaller than they are."""


def anchor(result: StudyResult, setting: str, metric: str = "") -> str:
    """Return a part of ids that is unique for a setting and metric, whatever characters their names hold."""
    position = [item.name for item in result.study.settings].index(setting)
    return f"{position}-{metric}" if metric else str(position)


def answer_figure(result: StudyResult, look: Mapping[str, Look], place: Place) -> Figure:
    """Every method at one size, with its controls, on each test set: what the first sentence of a report says."""
    places = [
        other
        for other in result.places()
        if (other.setting, other.metric, other.shots) == (place.setting, place.metric, place.shots)
    ]
    found = {other: [item for item in result.standings if item.place == other] for other in places}
    trivial = {other: result.trivial_of(other) for other in places}
    ends = [end for items in found.values() for item in items for end in (*_ends(item.accuracy), *item.per_seed)]
    ends += [known[name] for known in trivial.values() for name in ("chance", "majority") if name in known]
    ticks = _ticks([min(max(end, 0.0), 100.0) for end in ends])
    identifier = f"answer-{anchor(result, place.setting, place.metric)}"
    panels = []
    for number, (other, items) in enumerate(found.items()):
        ordered = sorted(items, key=lambda item: item.accuracy.mean)
        drawn = _rows_axes([look[item.method].label for item in ordered], ticks, width=_width(found), head=16)
        for row, item in enumerate(ordered):
            style = look[item.method]
            low, high = (min(max(end, ticks[0]), ticks[-1]) for end in _ends(item.accuracy))
            drawn.plot([low, high], [row, row], color=style.colour, linewidth=1.8, gid=series_of(style.series))
            for value in item.per_seed:
                _mark(drawn, value, row, style, size=4.0, faint=True)
            _mark(drawn, item.accuracy.mean, row, style, size=8.5)
            _value(drawn, row, wording.percent(item.accuracy.mean))
        for name, side in (("chance", "right"), ("majority", "left")):
            if name in trivial[other]:
                _level(drawn, trivial[other][name], name, side=side)
        told = "; ".join(f"{look[item.method].label} {wording.percent(item.accuracy.mean)}" for item in ordered[::-1])
        title = f"{wording.metric_name(place.metric)} on {other.test_set}, {wording.shots_text(place.shots)}"
        svg = as_svg(drawn, identifier=f"{identifier}-{number}", title=title, description=f"{told}.")
        panels.append(Panel(heading=other.test_set, svg=svg))
    return Figure(
        identifier=identifier,
        title=f"{wording.metric_name(place.metric)} in percent, {wording.shots_text(place.shots)}",
        caption=(
            "Large marks are means over seeds, small ones the seeds, bars the 95 % interval of the mean. Hollow "
            "marks are controls: what they gain does not come from what a teacher knows."
        ),
        panels=tuple(panels),
        columns=("test set", "method", "mean", "95 % interval"),
        rows=tuple(
            (other.test_set, look[item.method].label, wording.percent(item.accuracy.mean), _bounds(item.accuracy))
            for other, items in found.items()
            for item in items
        ),
        runs=_distinct(run for items in found.values() for item in items for run in item.runs),
        wide=_width(found) > _WIDTH,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    size: int
    label: str
    value: Spread


_Curves = dict[str, dict[str, list[_Point]]]
"""Test set -> method -> its points along the shots."""


def accuracy_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Accuracy over shots; None where there are not several sizes."""
    curves: _Curves = {}
    for standing in sorted(result.standings, key=lambda item: item.place.size):
        place = standing.place
        if (place.setting, place.metric) == (setting, metric):
            point = _Point(size=place.size, label=shots_label(place.shots), value=standing.accuracy)
            curves.setdefault(place.test_set, {}).setdefault(standing.method, []).append(point)
    return _over_shots(
        result,
        curves,
        look,
        where=(setting, metric),
        name="accuracy",
        title=f"{wording.metric_name(metric)} in percent",
        caption="Means over seeds; bars span the 95 % interval of the mean.",
        write=wording.percent,
        zero=False,
    )


def gain_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Gain over the study's baseline, paired by seed; None where there are not several sizes.

    A student that never sees a picture is left out: what it lacks would set the scale of the figure, and beside it
    no gain of a method could be seen.
    """
    curves: _Curves = {}
    blind = {name for name in result.study.methods if result.study.variant(name).training.get("hide_picture")}
    for trend in result.trends:
        if (trend.setting, trend.metric) == (setting, metric) and trend.treated not in blind:
            curves.setdefault(trend.test_set, {})[trend.treated] = [
                _Point(size=size, label=shots_label(shots), value=gain)
                for size, shots, gain in zip(trend.sizes, trend.shots, trend.gains, strict=True)
            ]
    return _over_shots(
        result,
        curves,
        look,
        where=(setting, metric),
        name="gain",
        title=f"Gain over {wording.method_label(result.study, result.study.baseline)}",
        caption=(
            "Difference in points of the same metric, paired by seed; bars span its 95 % interval over seeds. "
            "A method helps where its bar clears zero, and the teacher helps where it also clears the controls."
            + (" The student that sees no picture stands in the table." if blind else "")
        ),
        write=wording.signed,
        zero=True,
    )


def _over_shots(
    result: StudyResult,
    curves: _Curves,
    look: Mapping[str, Look],
    *,
    where: tuple[str, str],
    name: str,
    title: str,
    caption: str,
    write: Callable[[float], str],
    zero: bool,
) -> Figure | None:
    points = [point for by_method in curves.values() for line in by_method.values() for point in line]
    sizes = sorted({(point.size, point.label) for point in points})
    if len({size for size, _ in sizes}) < 2:
        return None
    ends = [end for point in points for end in _ends(point.value)]
    # The t-interval of few seeds reaches beyond what a share can be.
    ticks = _ticks([*ends, 0.0] if zero else [min(max(end, 0.0), 100.0) for end in ends])
    identifier = f"{name}-{anchor(result, *where)}"
    panels = []
    for number, (test_set, by_method) in enumerate(curves.items()):
        drawn = axes(_width(curves), 250, left=38, right=10, bottom=38)
        drawn.set_xscale("log", base=2)
        drawn.set_xlim(sizes[0][0] / 1.25, sizes[-1][0] * 1.25)
        drawn.set_ylim(ticks[0], ticks[-1])
        drawn.minorticks_off()
        mark_ticks(drawn, "y", ticks, [wording.signed_tick(tick) if zero else f"{tick:g}" for tick in ticks])
        mark_ticks(drawn, "x", [float(size) for size, _ in sizes], [label for _, label in sizes], lines=False)
        drawn.set_xlabel("training questions", color=SOFT, fontsize=11)
        if zero:
            drawn.axhline(0, color=SOFT, linewidth=1.2, zorder=1)
        for position, (method, line) in enumerate(by_method.items()):
            # Side by side, so that intervals of one size do not cover each other.
            shift = 1.03 ** (position - (len(by_method) - 1) / 2)
            style, xs = look[method], [point.size * shift for point in line]
            dashes = (0, (5, 4)) if style.hollow else "-"
            means = [point.value.mean for point in line]
            group = series_of(style.series)
            drawn.plot(xs, means, color=style.colour, linewidth=1.8, linestyle=dashes, gid=group)
            for x, point in zip(xs, line, strict=True):
                low, high = (min(max(end, ticks[0]), ticks[-1]) for end in _ends(point.value))
                drawn.plot([x, x], [low, high], color=style.colour, linewidth=1.6, gid=group)
                _mark(drawn, x, point.value.mean, style)
        told = "; ".join(
            f"{look[method].label}: " + ", ".join(f"{write(point.value.mean)} at {point.label}" for point in line)
            for method, line in by_method.items()
        )
        svg = as_svg(drawn, identifier=f"{identifier}-{number}", title=f"{title}, {test_set}", description=f"{told}.")
        panels.append(Panel(heading=test_set, svg=svg))
    return Figure(
        identifier=identifier,
        title=title,
        caption=caption,
        panels=tuple(panels),
        series=_distinct(method for by_method in curves.values() for method in by_method),
        columns=("test set", "method", "shots", "mean", "95 % interval"),
        rows=tuple(
            (
                test_set,
                look[method].label,
                point.label,
                write(point.value.mean),
                wording.interval(point.value.interval) if zero else _bounds(point.value),
            )
            for test_set, by_method in curves.items()
            for method, line in by_method.items()
            for point in line
        ),
        runs=_runs(result, *where),
        wide=_width(curves) > _WIDTH,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """One method: the filled end, the hollow end, and what is written beside them."""

    method: str
    filled: float
    hollow: float
    text: str


def drop_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """From in-domain accuracy to shifted accuracy, one row per method; None without a shifted set."""
    drops = [
        item for item in result.losses_of("drop") if (item.place.setting, item.place.metric) == (setting, metric)
    ]
    groups: dict[str, list[_Pair]] = {}
    for item in drops:
        questions = wording.QUESTIONS[item.questions or "same"]
        heading = f"{item.against} → {item.place.test_set}, {wording.shots_text(item.place.shots)}, {questions}"
        groups.setdefault(heading, []).append(_loss_pair(item))
    return _pairs_figure(
        result,
        look,
        groups,
        where=(setting, metric),
        name="drop",
        title="What the shift changes",
        caption=(
            f"{wording.metric_name(metric)} on the original test set (filled) and on the shifted one (hollow), means "
            "over seeds; the number is the change, in points. Where the shifted set asks the same questions "
            "otherwise, both are over the questions that the two sets share."
        ),
        columns=(
            "shifted set",
            "questions",
            "method",
            "shots",
            "change",
            "change minus the baseline's",
            "95 % interval",
        ),
        rows=[
            (
                item.place.test_set,
                wording.QUESTIONS[item.questions or "same"],
                look[item.method].label,
                shots_label(item.place.shots),
                *_changes(item),
            )
            for item in drops
        ],
    )


def vision_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """From accuracy with the picture to accuracy without it; None when no run was scored so."""
    reference, uses = _in_domain(result, result.losses_of("use"), setting, metric)
    groups: dict[str, list[_Pair]] = {}
    for item in uses:
        heading = f"picture {item.against}, {wording.shots_text(item.place.shots)}"
        groups.setdefault(heading, []).append(_loss_pair(item))
    return _pairs_figure(
        result,
        look,
        groups,
        where=(setting, metric),
        name="vision",
        title="What hangs on the picture",
        caption=(
            f"{wording.metric_name(metric)} on {reference} with the true picture (filled) and with a spoilt one "
            "(hollow). The longer the line, the more the answers hang on the picture."
        ),
        columns=("picture", "method", "shots", "change", "change minus the baseline's", "95 % interval"),
        rows=[
            (item.against, look[item.method].label, shots_label(item.place.shots), *_changes(item)) for item in uses
        ],
    )


def text_share_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Accuracy where the text alone suffices and where it does not; None without a text-only student."""
    reference, shares = _in_domain(result, result.text_shares, setting, metric)
    groups: dict[str, list[_Pair]] = {}
    for item in shares:
        pair = _Pair(
            method=item.method,
            filled=item.on_rest.mean,
            hollow=item.on_given.mean,
            text=wording.percent(item.on_rest.mean),
        )
        size = wording.shots_text(item.place.shots)
        of_size = [other for other in shares if other.place.shots == item.place.shots]
        alone = wording.percent(of_size[0].share.mean)
        groups.setdefault(f"{size}: text alone {alone} % right", []).append(pair)
    text_only = look[shares[0].text_only].label if shares else ""
    return _pairs_figure(
        result,
        look,
        groups,
        where=(setting, metric),
        name="textshare",
        title="What the texts alone give away",
        caption=(
            f"{wording.metric_name(metric)} on {reference}, split by what a text-only student of the same seed, "
            f"trained on the same questions without pictures ({text_only}), gets right: accuracy on the items that "
            "it gets wrong (filled) and on those that it gets right (hollow). The number is the former: only there "
            "can a picture have helped."
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
        rows=[
            (
                look[item.method].label,
                shots_label(item.place.shots),
                wording.spread(item.share),
                wording.spread(item.on_given),
                wording.spread(item.on_rest),
                *(
                    (wording.signed(item.change.mean), wording.interval(item.change.interval))
                    if item.change
                    else ("", "")
                ),
            )
            for item in shares
        ],
    )


def _loss_pair(item: Loss) -> _Pair:
    return _Pair(
        method=item.method,
        filled=item.before.mean,
        hollow=item.after.mean,
        text=wording.signed(-item.lost.mean),
    )


def _changes(item: Loss) -> tuple[str, str, str]:
    """Return the change from one side to the other, what it is more than the baseline's, and that one's interval."""
    own = wording.spread_of_change(item.lost.negated())
    if item.change is None:
        return own, "", ""
    more = item.change.negated()
    return own, wording.signed(more.mean), wording.interval(more.interval)


def _pairs_figure(
    result: StudyResult,
    look: Mapping[str, Look],
    groups: Mapping[str, Sequence[_Pair]],
    *,
    where: tuple[str, str],
    name: str,
    title: str,
    caption: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
) -> Figure | None:
    """Draw one panel per group, all on one scale: a row per method from a filled mark to a hollow one."""
    if not groups:
        return None
    ticks = _ticks([end for group in groups.values() for pair in group for end in (pair.filled, pair.hollow)])
    identifier = f"{name}-{anchor(result, *where)}"
    panels = []
    for number, (heading, group) in enumerate(groups.items()):
        shown = group[::-1]
        drawn = _rows_axes([look[pair.method].label for pair in shown], ticks, width=_width(groups))
        for row, pair in enumerate(shown):
            style = look[pair.method]
            group_id = series_of(style.series)
            drawn.plot([pair.hollow, pair.filled], [row, row], color=style.colour, linewidth=1.8, gid=group_id)
            _mark(drawn, pair.hollow, row, style, hollow=True)
            _mark(drawn, pair.filled, row, style, hollow=False)
            _value(drawn, row, pair.text)
        told = "; ".join(
            f"{look[one.method].label}: {wording.percent(one.filled)} to {wording.percent(one.hollow)} ({one.text})"
            for one in group
        )
        svg = as_svg(drawn, identifier=f"{identifier}-{number}", title=f"{title}, {heading}", description=f"{told}.")
        panels.append(Panel(heading=heading, svg=svg))
    return Figure(
        identifier=identifier,
        title=title,
        caption=caption,
        panels=tuple(panels),
        columns=columns,
        rows=tuple(rows),
        runs=_runs(result, *where),
        wide=_width(groups) > _WIDTH,
    )


def weight_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str) -> Figure | None:
    """Distribution of the confidence weights of the focus method; None when no run logged any."""
    method = result.study.focus
    histograms = [item for item in result.weights if (item.setting, item.method) == (setting, method)]
    if not histograms:
        return None
    identifier = f"weights-{anchor(result, setting)}"
    panels, rows = [], []
    for number, item in enumerate(histograms):
        if item.quantity == "weight":
            what, axis = f"w, {item.modality}", "confidence weight"
        else:
            what = "c_S, student" if item.modality == "student" else f"c_T, {item.modality}"
            axis = "P(right answer)"
        top, style = item.edges[-1], look[method]
        drawn = axes(_SMALL, 140, bottom=36, top=22)
        drawn.set_xlim(0, top)
        drawn.set_ylim(0, max(item.shares) or 1.0)
        widths = [high - low for low, high in zip(item.edges, item.edges[1:], strict=False)]
        drawn.bar(
            item.edges[:-1], item.shares, widths, align="edge", color=style.colour, edgecolor=PAPER, linewidth=1
        )
        drawn.axhline(0, color=SOFT, linewidth=1.2)
        mark_ticks(drawn, "x", *_labelled([tick for tick in _ticks([0.0, top]) if tick <= top]), lines=False)
        drawn.axvline(item.mean, color=INK, linewidth=1, linestyle=(0, (2, 3)))
        side = "left" if item.mean < top / 2 else "right"
        drawn.text(
            item.mean, max(item.shares), f" mean {item.mean:.2f} ", color=INK, fontsize=12, ha=side, va="bottom"
        )
        drawn.set_xlabel(axis, color=SOFT, fontsize=11)
        told = (
            f"{item.count} values between 0 and {top:.2g} with mean {item.mean:.2f}; "
            f"{100 * item.shares[-1]:.0f} % lie in the top bin."
        )
        size = wording.shots_text(item.shots)
        svg = as_svg(
            drawn, identifier=f"{identifier}-{number}", title=f"Distribution of {what} at {size}", description=told
        )
        panels.append(Panel(heading=f"{what}, {size}", svg=svg))
        top_share = f"{100 * item.shares[-1]:.0f} %"
        rows.append((what, shots_label(item.shots), f"{item.mean:.2f}", top_share, wording.count(item.count)))
    return Figure(
        identifier=identifier,
        title="How much each instance is distilled",
        caption=(
            "Confidence weights w given in the finetune step, and the probabilities of the right answer behind them, "
            "of the student (c_S) and of the teachers' cross-fitted probes (c_T), pooled over seeds and steps. With "
            "the default ratio c_T / c_S, a weight above 1 means that the teacher was surer of the right answer than "
            "the student. If nearly all lie at one value, weighting does nothing; if c_T lies at chance, it follows "
            "the student alone."
        ),
        panels=tuple(panels),
        columns=("quantity", "shots", "mean", "share in the top bin", "count"),
        rows=tuple(rows),
        runs=_distinct(cell.run for cell in result.cells if (cell.setting, cell.method) == (setting, method)),
    )


def calibration_figure(result: StudyResult, look: Mapping[str, Look], *, setting: str, metric: str) -> Figure | None:
    """Accuracy against confidence on the in-domain test set at the smallest size; None without stored scores."""
    reference, found = _in_domain(result, result.calibrations, setting, metric)
    if not found:
        return None
    smallest = min(item.place.size for item in found)
    shown = [item for item in found if item.place.size == smallest]
    identifier = f"calibration-{anchor(result, setting, metric)}"
    panels = []
    for number, item in enumerate(shown):
        style, bins = look[item.method], item.reliability.bins
        drawn = axes(_SMALL, _SMALL, left=30, right=12, bottom=36)
        drawn.set_xlim(0, 1)
        drawn.set_ylim(0, 1)
        halves = ([0.0, 0.5, 1.0], ["0", "50", "100"])
        mark_ticks(drawn, "y", *halves)
        mark_ticks(drawn, "x", *halves, lines=False)
        drawn.plot([0, 1], [0, 1], color=SOFT, linewidth=1.2)
        sure, right = [one.confidence for one in bins], [one.accuracy for one in bins]
        drawn.plot(sure, right, color=style.colour, linewidth=1.8, gid=series_of(style.series))
        total = sum(one.count for one in bins)
        for one in bins:
            _mark(drawn, one.confidence, one.accuracy, style, size=4 + 10 * (one.count / total) ** 0.5)
        error = f"{item.reliability.expected_error:.1f}"
        drawn.text(0.98, 0.05, f"ECE {error}", color=INK, fontsize=12, fontweight="bold", ha="right")
        drawn.set_xlabel("confidence %", color=SOFT, fontsize=11)
        told = ", ".join(f"{100 * one.accuracy:.0f} % right at {100 * one.confidence:.0f} % sure" for one in bins)
        svg = as_svg(
            drawn,
            identifier=f"{identifier}-{number}",
            title=f"Reliability of {style.label}",
            description=f"Expected calibration error {error} points: {told}.",
        )
        panels.append(Panel(heading=style.label, svg=svg))
    return Figure(
        identifier=identifier,
        title="Right as often as sure",
        caption=(
            f"{reference}, {wording.shots_text(shown[0].place.shots)}, all seeds: accuracy of the answers in each "
            "tenth of confidence; the area of a mark grows with the number of answers. On the diagonal, confidence "
            "is honest; below it, the student is too sure. ECE is the mean distance from it in points."
        ),
        panels=tuple(panels),
        columns=("method", "shots", "ECE, points"),
        rows=tuple(
            (look[item.method].label, shots_label(item.place.shots), f"{item.reliability.expected_error:.1f}")
            for item in found
        ),
        runs=_distinct(run for item in result.standings if item.place == shown[0].place for run in item.runs),
    )


def loss_figure(log: Sequence[Mapping[str, Any]], *, run: str) -> Figure | None:
    """The task loss and each term of the distillation over the steps of a run; None for a run of no two steps."""
    terms = _distinct(key for record in log for key in record if key.startswith("raw/"))
    if not terms or len(log) < 2:
        return None
    last = max(int(record["step"]) for record in log)
    began = next((int(record["step"]) for record in log if record["phase"] == "finetune"), 0)
    panels, rows = [], []
    for number, term in enumerate(terms):
        name = _TERMS.get(term.removeprefix("raw/"), term.removeprefix("raw/"))
        points = [(int(record["step"]), float(record[term])) for record in log if term in record]
        steps, values = zip(*points, strict=True)
        ticks = _ticks([min(values), max(values)])
        drawn = axes(_SMALL * 1.5, 150, left=40, right=10, bottom=36)
        drawn.set_xlim(0, max(last, 1))
        drawn.set_ylim(ticks[0], ticks[-1])
        mark_ticks(drawn, "y", *_labelled(ticks))
        mark_ticks(drawn, "x", *_labelled([tick for tick in _ticks([0.0, float(last)]) if tick <= last]), lines=False)
        drawn.set_xlabel("optimiser step", color=SOFT, fontsize=11)
        if began:
            drawn.axvline(began, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        drawn.plot(steps, values, color=SERIES[1], linewidth=1, alpha=0.35)
        drawn.plot(*_smoothed(steps, values), color=SERIES[1], linewidth=1.8)
        first, end = values[0], sum(values[-10:]) / len(values[-10:])
        svg = as_svg(
            drawn,
            identifier=f"loss-{number}",
            title=f"{name} over the steps",
            description=f"From {first:.3g} at step {steps[0]} to {end:.3g} at step {steps[-1]}.",
        )
        panels.append(Panel(heading=name, svg=svg))
        rows.append((name, f"{steps[0]} to {steps[-1]}", f"{first:.4g}", f"{min(values):.4g}", f"{end:.4g}"))
    return Figure(
        identifier="loss",
        title="Loss of each term over the steps",
        caption="Raw values before they are weighed, each step thin and their running mean bold."
        + (f" Left of the dotted line, the {began} steps of the adapt step." if began else ""),
        panels=tuple(panels),
        columns=("term", "steps", "first", "least", "mean of the last ten"),
        rows=tuple(rows),
        runs=(run,),
    )


_TERMS = {
    "task": "task",
    "vision": "vision teacher",
    "text": "language teacher",
    "answers": "teachers' answers",
    "contrast": "contrast of pictures and texts",
    "drift": "drift from the start",
}


def _smoothed(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Return the running mean over a twentieth of the steps."""
    reach = max(1, len(values) // 40)
    windows = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return list(steps), [sum(window) / len(window) for window in windows]


def kinds_figure(title: str, kinds: Mapping[str, Mapping[str, float]], *, identifier: str, run: str) -> Figure | None:
    """Accuracy by question type, answer type or class; None where there is one kind alone."""
    if len(kinds) < 2:
        return None
    ordered = sorted(kinds.items(), key=lambda pair: pair[1]["accuracy"])[-_MOST_KINDS:]
    drawn = _rows_axes(
        [f"{name} ({found['num_items']:.0f})" for name, found in ordered], [0.0, 25.0, 50.0, 75.0, 100.0]
    )
    for row, (_, found) in enumerate(ordered):
        drawn.plot([0, found["accuracy"]], [row, row], color=SERIES[1], linewidth=6, solid_capstyle="butt")
        _value(drawn, row, wording.percent(found["accuracy"]))
    told = ", ".join(f"{name} {found['accuracy']:.1f}" for name, found in ordered[::-1])
    return Figure(
        identifier=identifier,
        title=title,
        caption="Percent right, and how many items there are of each kind.",
        panels=(
            Panel(heading="", svg=as_svg(drawn, identifier=f"{identifier}-0", title=title, description=f"{told}.")),
        ),
        columns=("kind", "items", "percent right"),
        rows=tuple((name, f"{found['num_items']:.0f}", f"{found['accuracy']:.1f}") for name, found in kinds.items()),
        runs=(run,),
    )


_MOST_KINDS = 24


def claim_strip(test: ClaimTest, *, reach: float, margin: float, identifier: str) -> Markup:
    """Draw one test of a claim: mean, 95 % interval over seeds, single seeds, zero, and the margin that matters.

    The interval over seeds and items is the thin line underneath.

    Args:
        reach: the axis spans [-reach, reach] points, the same for all tests of a page.
        margin: smallest gain that would matter.
    """
    drawn = axes(300, 30, left=6, right=6, top=0, bottom=0)
    drawn.set_xlim(-reach, reach)
    drawn.set_ylim(0, 30)
    drawn.axvspan(0, min(margin, reach), color=BAND, linewidth=0)
    drawn.axvline(0, color=SOFT, linewidth=1.2)

    def inside(value: float) -> float:
        return min(max(value, -reach), reach)

    joint = [inside(test.joint_interval.low), inside(test.joint_interval.high)]
    drawn.plot(joint, [7, 7], color=SOFT, linewidth=1)
    if test.interval is not None:
        ends = [inside(test.interval.low), inside(test.interval.high)]
        drawn.plot(ends, [15, 15], color=SERIES[1], linewidth=1.8)
    for value in test.per_seed:
        if abs(value) <= reach:
            drawn.plot([value], [15], "o", color=SERIES[1], markersize=4.4, alpha=0.45, markeredgewidth=0)
    drawn.plot([inside(test.mean)], [15], "o", color=SERIES[1], markersize=9, markeredgecolor=PAPER)
    told = f"Mean {wording.signed(test.mean)} {test.unit}, 95 % interval {wording.interval(test.interval)}."
    return as_svg(drawn, identifier=identifier, title=test.name, description=told)


def claim_axis(*, reach: float) -> Markup:
    """Draw the axis that all strips share; decorative, the strips carry their numbers as text."""
    drawn = axes(300, 18, left=6, right=6, top=0, bottom=16)
    drawn.set_xlim(-reach, reach)
    ticks = [tick for tick in _ticks([-reach, reach]) if abs(tick) <= reach]
    mark_ticks(drawn, "x", ticks, [wording.signed_tick(tick) for tick in ticks], lines=False)
    return as_svg(drawn, identifier="claim-axis", title="", description="")


def _width(panels: Collection[Any]) -> float:
    return _WIDE.get(len(panels), _WIDTH)


def _rows_axes(names: Sequence[str], ticks: list[float], *, width: float = _WIDTH, head: float = 0.0) -> Axes:
    """Return axes with a named row for each, the first at the foot, and room for a value at their right."""
    height, room = head + 8 + _ROW * len(names) + 24, _NAMES if width == _WIDTH else 1.3 * _NAMES
    drawn = axes(width, height, left=room + 10, right=_VALUES, top=head + 4, bottom=24)
    drawn.set_xlim(ticks[0], ticks[-1])
    drawn.set_ylim(-0.6, len(names) - 0.4)
    mark_ticks(drawn, "x", *_labelled(ticks))
    for row, name in enumerate(names):
        drawn.annotate(
            _shorten(name), (0, row), (-10, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=INK, fontsize=12, ha="right", va="center",
        )  # fmt: skip
    return drawn


def _value(drawn: Axes, row: float, text: str) -> None:
    drawn.annotate(
        text, (1, row), (_VALUES - 2, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        color=INK, fontsize=12, fontweight="bold", ha="right", va="center",
    )  # fmt: skip


def _level(drawn: Axes, value: float, name: str, *, side: str) -> None:
    """Mark what is right without a student by a dotted line with its name above."""
    drawn.axvline(value, color=SOFT, linewidth=1.2, linestyle=(0, (1.5, 3)))
    drawn.annotate(
        name, (value, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=SOFT, fontsize=11, ha=side, va="bottom",
    )  # fmt: skip


def _mark(
    drawn: Axes,
    x: float,
    y: float,
    style: Look,
    *,
    size: float = 8.0,
    hollow: bool | None = None,
    faint: bool = False,
) -> None:
    empty = style.hollow if hollow is None else hollow
    drawn.plot(
        [x],
        [y],
        marker=_MARKERS[style.shape],
        markersize=size if style.shape in ("circle", "triangle") else size * 0.85,
        color=style.colour,
        markerfacecolor=PAPER if empty and not faint else style.colour,
        markeredgecolor=style.colour if empty or faint else PAPER,
        markeredgewidth=0 if faint else 1.6,
        alpha=0.4 if faint else None,
        linestyle="none",
        gid=series_of(style.series),
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Return at least two round numbers that span the values."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 1.0, high + 1.0
    places = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(place), 10) for place in places]


def _labelled(ticks: list[float]) -> tuple[list[float], list[str]]:
    return ticks, [f"{tick:g}" for tick in ticks]


def _shorten(label: str, *, limit: int = 23) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def _ends(value: Spread) -> tuple[float, float]:
    return (value.interval.low, value.interval.high) if value.interval else (value.mean, value.mean)


def _bounds(value: Spread) -> str:
    if value.interval is None:
        return ""
    return f"[{wording.percent(value.interval.low)}, {wording.percent(value.interval.high)}]"


def _distinct(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _in_domain(result: StudyResult, records: Iterable[Any], setting: str, metric: str) -> tuple[str, list[Any]]:
    """Return a setting's in-domain test set, its first one, and the records of a metric there."""
    reference = result.study.setting(setting).reference
    wanted = (setting, metric, reference)
    return reference, [
        item for item in records if (item.place.setting, item.place.metric, item.place.test_set) == wanted
    ]


def _runs(result: StudyResult, setting: str, metric: str) -> tuple[str, ...]:
    places = (item for item in result.standings if (item.place.setting, item.place.metric) == (setting, metric))
    return _distinct(run for item in places for run in item.runs)
