"""The figures of a study, each with its panels, a caption, the numbers behind it, and the runs that produced them.

A method has the same look in every figure. The colours are those of Okabe and Ito, distinct for any colour vision.
Roles are distinct without colour: controls are hollow and dashed.

Matplotlib lays out a drawing once, with placeholder colours. The page embeds it twice, in light and in dark colours,
and a browser shows one of the two. One unit is a CSS pixel.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

from advl_pipeline.base.toml import read_toml
from advl_pipeline.reporting import wording
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.numbers import Estimate, Measured
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.table import Place

Share = Literal["whole", "half", "third"]

RowT = TypeVar("RowT", bound=Measured)

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}

WIDTHS: Mapping[Share, float] = {"whole": 720.0, "half": 535.0, "third": 350.0}
"""Width of a drawing in CSS pixels by its share of a row; a full row is scaled to the width of the page."""

_FREE_COLOURS, _FREE_SHAPES = (2, 3, 4, 5, 6, 7), ("square", "diamond", "triangle")

_VALUES, _ROW, _LONGEST_NAME = 46.0, 25.0, 23
"""Space for a number next to a row, height of a row, and maximum number of letters of a method's name."""

_UNITS_PER_INCH = 72

_SAID = read_toml(Path(str(resources.files("advl_pipeline.reporting") / "assets" / "figures.toml")))
_METADATA = ("Creator", "Date", "Format", "Type")

SCHEMES: Mapping[str, Mapping[str, str]] = {scheme: _SAID["colours"][scheme] for scheme in ("light", "dark")}
"""Colours of the figures and of their legends on the page: name -> colour."""

_STAND_INS = {name: f"#{number:06x}" for number, name in enumerate(SCHEMES["light"], start=1)}
PAPER, INK, SOFT, GRID, *SERIES = _STAND_INS.values()

Drawing = tuple[str, Axes, Sequence[tuple[str, ...]]]
"""A panel of a figure: its heading, its axes, and a row of cells for every number drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure of the page: drawings with their headings.

    `panels` are headings, drawings and the share of a row of each. `series` are the methods for the legend. `rows`
    repeat every number drawn.
    """

    identifier: str
    title: str
    caption: str
    panels: tuple[tuple[str, Markup, Share], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[str, ...]
    series: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The style of a method in every figure. A control is hollow and dashed."""

    label: str
    number: int
    shape: str
    hollow: bool

    @property
    def colour(self) -> str:
        return SERIES[self.number]


def shares_of_rows(num_panels: int) -> list[Share]:
    """Return the share of its row for each panel of a figure: rows of three, with the last rows filled."""
    num_halves = {0: 0, 1: 4, 2: 2}[num_panels % 3]
    if num_panels < max(2, num_halves):
        return ["whole"]
    thirds: list[Share] = ["third"] * (num_panels - num_halves)
    halves: list[Share] = ["half"] * num_halves
    return thirds + halves


def axes(
    width: float, height: float, *, left: float = 6, right: float = 8, top: float = 8, bottom: float = 22
) -> Axes:
    """Return the axes of a drawing without frame or ticks, with margins in pixels."""
    canvas = Canvas(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), dpi=_UNITS_PER_INCH)
    area = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    made: Axes = canvas.add_axes(area)
    made.set_frame_on(False)
    made.set_xticks([])
    made.set_yticks([])
    return made


def mark(drawn: Axes, x: float, y: float, look: Look, *, size: float = 8.0, faint: bool = False) -> None:
    """Draw one mark of a method; a faint one is a single seed."""
    drawn.plot(
        [x],
        [y],
        marker=_MARKERS[look.shape],
        markersize=size if look.shape in ("circle", "triangle") else size * 0.85,
        color=look.colour,
        markerfacecolor=PAPER if look.hollow and not faint else look.colour,
        markeredgecolor=look.colour if look.hollow or faint else PAPER,
        markeredgewidth=0 if faint else 1.6,
        alpha=0.4 if faint else None,
        linestyle="none",
        clip_on=False,
    )


def round_ticks(values: Sequence[float]) -> list[float]:
    """Return at least two round numbers that span the values."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 1.0, high + 1.0
    places = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(place), 10) for place in places]


def mark_ticks(
    drawn: Axes, which: str, places: list[float], labels: list[str] | None = None, *, name: str = ""
) -> None:
    """Label ticks of the axis "x" or "y", each with a thin grid line; an axis with a name has no lines."""
    axis = drawn.xaxis if which == "x" else drawn.yaxis
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter(labels or [f"{place:g}" for place in places]))
    drawn.tick_params(axis=which, length=0, pad=6, labelsize=11, labelcolor=SOFT)  # type: ignore[arg-type]
    if name:
        axis.set_label_text(name, color=SOFT, fontsize=11)
    else:
        drawn.grid(axis=which, color=GRID, linewidth=1)  # type: ignore[arg-type]
        drawn.set_axisbelow(True)


def as_figure(
    kind: str,
    drawings: Sequence[Drawing],
    *,
    identifier: str,
    runs: Iterable[str],
    series: Iterable[str] = (),
    **words: str,
) -> Figure:
    """Return drawings as a figure, each with a text alternative that lists every number.

    Args:
        kind: key in `assets/figures.toml`, which contains the title, the caption and the column names of rows.
        identifier: unique on the page.
        words: values for the title and the caption.
    """
    texts = _SAID[kind]
    title, columns = texts["title"].format(**words), tuple(texts["columns"])
    panels: list[tuple[str, Markup, Share]] = []
    shares = shares_of_rows(len(drawings))
    for number, ((heading, drawn, rows), share) in enumerate(zip(drawings, shares, strict=True)):
        descriptions = (
            ", ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=True) if cell) for row in rows
        )
        titled = f"{title}, {heading}" if heading else title
        image = _as_image(
            drawn, identifier=f"{identifier}-{number}", alternative=f"{titled}: {'; '.join(descriptions)}."
        )
        panels.append((heading, image, share))
    return Figure(
        identifier=identifier,
        title=title,
        caption=texts["caption"].format(**words),
        panels=tuple(panels),
        columns=columns,
        rows=tuple(row for _, _, rows in drawings for row in rows),
        runs=tuple(dict.fromkeys(runs)),
        series=tuple(dict.fromkeys(series)),
    )


def _as_image(drawn: Axes, *, identifier: str, alternative: str) -> Markup:
    buffer, canvas = io.StringIO(), drawn.get_figure(root=True)
    assert canvas is not None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    images = []
    for colours in SCHEMES.values():
        svg = buffer.getvalue().replace("'DejaVu Sans'", "system-ui")
        for name, stand_in in _STAND_INS.items():
            svg = svg.replace(stand_in, colours[name])
        images.append(f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")
    dark = Markup('<source media="(prefers-color-scheme: dark)" srcset="{}">').format(images[1])
    return Markup('<picture>{}<img src="{}" alt="{}"></picture>').format(dark, images[0], alternative)


Looks = Mapping[str, Look]


def looks(study: StudyConfig) -> dict[str, Look]:
    """Return the look of every method of a study: grey for the baseline, blue for the focus, the rest in order."""
    assigned = {study.baseline: (0, "circle"), study.focus: (1, "circle")}
    for free, method in enumerate(name for name in study.methods if name not in assigned):
        assigned[method] = (_FREE_COLOURS[free % len(_FREE_COLOURS)], _FREE_SHAPES[free % len(_FREE_SHAPES)])
    return {
        method: Look(
            label=wording.method_label(study, method),
            number=assigned[method][0],
            shape=assigned[method][1],
            hollow=study.variant(method).role == "control",
        )
        for method in study.methods
    }


def anchor(result: StudyResult, setting: str, metric: str) -> str:
    """Return a part of ids that is unique for a setting and metric, whatever characters their names contain."""
    return f"{[item.name for item in result.study.settings].index(setting)}-{metric}"


def answer_figure(result: StudyResult, look: Looks, place: Place) -> Figure:
    """Draw every method at one size, with its controls, on each test set, as the first sentence of a report."""
    here = place.setting, place.metric, place.shots
    of_size = (
        row for row in result.numbers.accuracies if (row.place.setting, row.place.metric, row.place.shots) == here
    )
    by_set = _grouped(of_size, lambda row: row.place.test_set)
    without_student: dict[str, dict[str, float]] = {}
    for test_set in by_set:
        trivial = result.trivial_of(place._replace(test_set=test_set))
        without_student[test_set] = {"chance": trivial.chance, "majority": trivial.majority} if trivial else {}
    ends = [end for rows in by_set.values() for row in rows for end in (*_ends(row.estimate), *row.estimate.per_seed)]
    ends += [level for levels in without_student.values() for level in levels.values()]
    ticks = round_ticks(_percents(ends))
    drawings: list[Drawing] = []
    for (test_set, rows), share in zip(by_set.items(), shares_of_rows(len(by_set)), strict=True):
        # The first method on top, in every panel.
        ordered = sorted(rows, key=lambda row: -result.study.methods.index(row.method))
        width = WIDTHS[share]
        drawn = axes(width, 48 + _ROW * len(rows), left=0.3 * width + 46, right=_VALUES, top=20, bottom=24)
        drawn.set_xlim(ticks[0], ticks[-1])
        drawn.set_ylim(-0.6, len(rows) - 0.4)
        mark_ticks(drawn, "x", ticks)
        labels = (look[row.method].label for row in ordered)
        shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in labels]
        drawn.set_yticks(range(len(rows)), shown)
        drawn.tick_params(axis="y", length=0, pad=10, labelsize=12, labelcolor=INK)
        at_right, above = drawn.get_yaxis_transform(), drawn.get_xaxis_transform()
        for height, row in enumerate(ordered):
            style, estimate = look[row.method], row.estimate
            mean = wording.percent(estimate.mean)
            drawn.plot(_inside(estimate, ticks), [height] * 2, color=style.colour, linewidth=1.8)
            for value in estimate.per_seed:
                mark(drawn, value, height, style, size=4.0, faint=True)
            mark(drawn, estimate.mean, height, style, size=8.5)
            drawn.text(1.02, height, mean, color=INK, fontsize=12, fontweight="bold", va="center", transform=at_right)
        for name, level in without_student[test_set].items():
            drawn.axvline(level, color=SOFT, linewidth=1.2, linestyle=(0, (1.5, 3)))
            side: Literal["left", "right"] = "right" if name == "chance" else "left"
            drawn.text(level, 1.04, name, color=SOFT, fontsize=11, ha=side, va="bottom", transform=above)
        write = wording.percent
        cells = [
            (
                test_set,
                look[row.method].label,
                write(row.estimate.mean),
                wording.interval(row.estimate.interval, write),
            )
            for row in rows
        ]
        drawings.append((test_set, drawn, cells))
    return as_figure(
        "answer",
        drawings,
        identifier=f"answer-{anchor(result, place.setting, place.metric)}",
        runs=(run for rows in by_set.values() for row in rows for run in row.runs),
        metric=wording.metric_name(place.metric),
        shots=wording.shots_text(place.shots),
    )


def accuracy_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """Draw accuracy over shots; None without several sizes."""
    rows = [row for row in result.numbers.accuracies if row.place[:2] == (setting, metric)]
    return _over_shots(result, look, rows, "accuracy", metric=wording.metric_name(metric))


def gain_figure(result: StudyResult, look: Looks, *, setting: str, metric: str) -> Figure | None:
    """Draw the gain over the study's baseline, paired by seed; None without several sizes.

    A student that never sees a picture is left out: its loss would set the scale of the figure and hide the gains of
    the methods.
    """
    study = result.study
    blind = {name for name in study.methods if study.variant(name).training.get("hide_picture")}
    trends = [trend for trend in result.numbers.trends if trend.method not in blind]
    rows = [gain for trend in trends for gain in trend.gains if gain.place[:2] == (setting, metric)]
    remark = " The student that sees no picture is in the table." if blind else ""
    return _over_shots(result, look, rows, "gain", baseline=wording.method_label(study, study.baseline), blind=remark)


def _over_shots(result: StudyResult, look: Looks, rows: Sequence[Measured], kind: str, **words: str) -> Figure | None:
    sizes = {place.size: place.shots for place in sorted((row.place for row in rows), key=lambda place: place.rank)}
    if len(sizes) < 2:
        return None
    gains = kind == "gain"
    ends = [end for row in rows for end in _ends(row.estimate)]
    # The t-interval over few seeds may leave the range of a percentage.
    ticks = round_ticks([*ends, 0.0] if gains else _percents(ends))
    write = wording.signed if gains else wording.percent
    by_set = _grouped(sorted(rows, key=lambda row: row.place.size), lambda row: row.place.test_set)
    drawings: list[Drawing] = []
    for (test_set, rows_of_set), share in zip(by_set.items(), shares_of_rows(len(by_set)), strict=True):
        drawn = axes(WIDTHS[share], 250, left=38, right=10, bottom=38)
        drawn.set_xscale("log", base=2)
        drawn.set_xlim(min(sizes) / 1.25, max(sizes) * 1.25)
        drawn.set_ylim(ticks[0], ticks[-1])
        drawn.minorticks_off()
        mark_ticks(drawn, "y", ticks, [wording.signed_tick(tick) for tick in ticks] if gains else None)
        mark_ticks(drawn, "x", list(map(float, sizes)), list(sizes.values()), name="training questions")
        if gains:
            drawn.axhline(0, color=SOFT, linewidth=1.2, zorder=1)
        lines = _grouped(rows_of_set, lambda row: row.method)
        for position, (method, line) in enumerate(lines.items()):
            # Methods are drawn side by side, so that intervals of one size do not overlap.
            shift = 1.03 ** (position - (len(lines) - 1) / 2)
            style, xs = look[method], [row.place.size * shift for row in line]
            dashes = (0, (5, 4)) if style.hollow else "-"
            drawn.plot(xs, [row.estimate.mean for row in line], color=style.colour, linewidth=1.8, linestyle=dashes)
            for x, row in zip(xs, line, strict=True):
                drawn.plot([x, x], _inside(row.estimate, ticks), color=style.colour, linewidth=1.6)
                mark(drawn, x, row.estimate.mean, style)
        shown = [
            (
                test_set,
                look[method].label,
                row.place.shots,
                write(row.estimate.mean),
                wording.interval(row.estimate.interval, write),
            )
            for method, line in lines.items()
            for row in line
        ]
        drawings.append((test_set, drawn, shown))
    here = rows[0].place.setting, rows[0].place.metric
    return as_figure(
        kind,
        drawings,
        identifier=f"{kind}-{anchor(result, *here)}",
        runs=(run for row in result.numbers.accuracies if row.place[:2] == here for run in row.runs),
        series=(row.method for row in rows),
        **words,
    )


def _grouped(rows: Iterable[RowT], name_of: Callable[[RowT], str]) -> dict[str, list[RowT]]:
    groups: dict[str, list[RowT]] = {}
    for row in rows:
        groups.setdefault(name_of(row), []).append(row)
    return groups


def _ends(estimate: Estimate) -> tuple[float, float]:
    interval = estimate.interval
    return (interval.low, interval.high) if interval else (estimate.mean, estimate.mean)


def _percents(values: Iterable[float]) -> list[float]:
    return [min(max(value, 0.0), 100.0) for value in values]


def _inside(estimate: Estimate, ticks: list[float]) -> list[float]:
    return [min(max(end, ticks[0]), ticks[-1]) for end in _ends(estimate)]
