"""Drawings of a page: matplotlib lays them out, and the page's style sheet colours them, light and dark.

A colour is drawn by a stand-in, which becomes a class of the element: `fill-soft`, `stroke-c1`. So one drawing serves
both schemes, and no element has a style of its own, which the page's policy would refuse. One unit is a CSS pixel.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

from advl_pipeline.configuration import read_toml

INK, SOFT, GRID, PAPER = (f"#0{number}0000" for number in range(1, 5))
SERIES = tuple(f"#00{number:02x}00" for number in range(1, 9))
_CLASSES = dict(zip((INK, SOFT, GRID, PAPER), "ink soft grid paper".split(), strict=True))
_CLASSES |= {colour: f"c{number}" for number, colour in enumerate(SERIES)}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}

NARROW, _WIDE = 350.0, {1: 640.0, 2: 530.0}
"""Width of a drawing among three or more in a figure, and among so few; together they are as wide as the page."""

_NAMES, _VALUES, _ROW = 142.0, 46.0, 25.0
_LONGEST_NAME = 23

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_UNITS_PER_INCH = 72

_SAID = read_toml(Path(str(resources.files("advl_pipeline.reporting") / "assets" / "figures.toml")))
_KEPT = re.compile(
    r"stroke-(width|dasharray|linecap|opacity)|fill-opacity|opacity|text-anchor|font-(size|weight)|fill|stroke"
)
_SERIES_OF = "series:"


Drawing = tuple[str, Axes, Sequence[tuple[str, ...]]]
"""A panel of a figure: its heading, what is drawn, and a row of cells for every number that is drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What a section shows: drawings with their headings.

    `series` are the methods in it, for the legend; `rows` repeat every number that is drawn.
    """

    identifier: str
    title: str
    caption: str
    panels: tuple[tuple[str, Markup], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[str, ...]
    series: tuple[str, ...]
    wide: bool
    """Whether a phone shows the drawings smaller than they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a method is drawn in every figure; `series` is its name on the page. A control is hollow and dashed."""

    series: str
    label: str
    number: int
    shape: str
    hollow: bool

    @property
    def colour(self) -> str:
        return SERIES[self.number]

    @property
    def group(self) -> str:
        """Id of what is drawn for the method, which its entry in a legend emphasises."""
        return f"{_SERIES_OF}{self.series}"


def panel_width(num_panels: int) -> float:
    return _WIDE.get(num_panels, NARROW)


def axes(
    width: float, height: float, *, left: float = 6, right: float = 8, top: float = 8, bottom: float = 22
) -> Axes:
    """Return axes of a drawing without frame or ticks, with margins in pixels."""
    canvas = Canvas(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), dpi=_UNITS_PER_INCH)
    area = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    made: Axes = canvas.add_axes(area)
    made.set_frame_on(False)
    made.set_xticks([])
    made.set_yticks([])
    return made


def row_axes(names: Sequence[str], ticks: list[float], *, width: float = NARROW, head: float = 0.0) -> Axes:
    """Return axes with a named row for each, the first at the foot, and room for a value at their right."""
    height, room = head + 8 + _ROW * len(names) + 24, _NAMES if width == NARROW else 1.3 * _NAMES
    drawn = axes(width, height, left=room + 10, right=_VALUES, top=head + 4, bottom=24)
    drawn.set_xlim(ticks[0], ticks[-1])
    drawn.set_ylim(-0.6, len(names) - 0.4)
    mark_ticks(drawn, "x", ticks)
    for row, name in enumerate(names):
        shown = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
        _beside(drawn, shown, (0, row), -10)
    return drawn


def write_value(drawn: Axes, row: float, text: str) -> None:
    """Write a number at the right of a row."""
    _beside(drawn, text, (1, row), _VALUES - 2, weight="bold")


def _beside(drawn: Axes, text: str, place: tuple[float, float], shift: float, *, weight: str = "normal") -> None:
    drawn.annotate(
        text, place, (shift, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        color=INK, fontsize=12, fontweight=weight, ha="right", va="center",
    )  # fmt: skip


def mark_level(drawn: Axes, value: float, name: str, *, side: str) -> None:
    """Mark what is right without a student by a dotted line with its name above."""
    drawn.axvline(value, color=SOFT, linewidth=1.2, linestyle=(0, (1.5, 3)))
    drawn.annotate(
        name, (value, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=SOFT, fontsize=11, ha=side, va="bottom",
    )  # fmt: skip


def mark(
    drawn: Axes, x: float, y: float, look: Look, *, size: float = 8.0, hollow: bool | None = None, faint: bool = False
) -> None:
    """Draw one mark of a method; a faint one is a single seed."""
    empty = look.hollow if hollow is None else hollow
    drawn.plot(
        [x],
        [y],
        marker=_MARKERS[look.shape],
        markersize=size if look.shape in ("circle", "triangle") else size * 0.85,
        color=look.colour,
        markerfacecolor=PAPER if empty and not faint else look.colour,
        markeredgecolor=look.colour if empty or faint else PAPER,
        markeredgewidth=0 if faint else 1.6,
        alpha=0.4 if faint else None,
        linestyle="none",
        gid=look.group,
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
    """Name places of the axis "x" or "y", each with a thin line across; an axis with a name has no lines."""
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
    """Return drawings as a figure, each with a text alternative that says every number.

    Args:
        kind: of `assets/figures.toml`, where title and caption stand and the names of the columns of rows.
        identifier: unique on the page.
        words: filled into title and caption.
    """
    said = _SAID[kind]
    title, columns = said["title"].format(**words), tuple(said["columns"])
    panels = []
    for number, (heading, drawn, rows) in enumerate(drawings):
        told = (", ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=True) if cell) for row in rows)
        svg = _as_svg(
            drawn,
            identifier=f"{identifier}-{number}",
            title=f"{title}, {heading}" if heading else title,
            description="; ".join(told) + ".",
        )
        panels.append((heading, svg))
    return Figure(
        identifier=identifier,
        title=title,
        caption=said["caption"].format(**words),
        panels=tuple(panels),
        columns=columns,
        rows=tuple(row for _, _, rows in drawings for row in rows),
        runs=tuple(dict.fromkeys(runs)),
        series=tuple(dict.fromkeys(series)),
        wide=any(drawn.get_figure(root=True).bbox.width > NARROW for _, drawn, _ in drawings),  # type: ignore[union-attr]
    )


def _as_svg(drawn: Axes, *, identifier: str, title: str, description: str) -> Markup:
    buffer, canvas = io.StringIO(), drawn.get_figure(root=True)
    assert canvas is not None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "advl", "svg.id": None}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for tag in ("metadata", "defs"):
        for found in root.findall(f"{_SVG}{tag}"):
            root.remove(found)
    used = {element.get(_HREF, "").removeprefix("#") for element in root.iter(f"{_SVG}use")}
    for element in root.iter():
        _theme(element, identifier, used)
    width, height = (root.attrib[name].removesuffix("pt") for name in ("width", "height"))
    labels = {"role": "img", "aria-labelledby": f"{identifier}-t {identifier}-d"}
    root.attrib = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}", **labels}
    for tag, text in (("desc", description), ("title", title)):
        told = ElementTree.Element(tag, {"id": f"{identifier}-{tag[0]}"})
        told.text = text
        root.insert(0, told)
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    return Markup(re.sub(r"\s*\n\s*", " ", text))


def _theme(element: ElementTree.Element, identifier: str, used: set[str]) -> None:
    """Turn styles into attributes and classes, and keep of the ids only those that something refers to."""
    element.tag = element.tag.removeprefix(_SVG)
    classes = []
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name in ("fill", "stroke") and value in _CLASSES:
            classes.append(f"{name}-{_CLASSES[value]}")
        elif _KEPT.fullmatch(name):
            element.set(name, value)
    element.attrib.pop("clip-path", None)
    name = element.attrib.pop("id", "")
    if name.startswith(_SERIES_OF):
        classes.append("series")
        element.set("data-series", name.removeprefix(_SERIES_OF))
    elif name in used:
        element.set("id", f"{identifier}-{name}")
    if target := element.attrib.pop(_HREF, ""):
        element.set("href", f"#{identifier}-{target[1:]}")
    if classes:
        element.set("class", " ".join(classes))
    # A rotation by nothing.
    if re.match(r"rotate\(-?0[ .]", element.get("transform", "")):
        del element.attrib["transform"]
