"""Drawings of a page: matplotlib lays them out, and the page's style sheet colours them, light and dark.

A colour is drawn by a stand-in, which becomes a variable of the style sheet: `var(--soft)`, `var(--c1)`. So one
drawing serves both schemes, and no element has a style of its own, which the page's policy would refuse. One unit is
a CSS pixel.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

from advl_pipeline.toml import read_toml

_SCHEME = {f"#0{number}0000": name for number, name in enumerate(("ink", "soft", "grid", "paper"), start=1)}
INK, SOFT, GRID, PAPER = _SCHEME
SERIES = tuple(f"#00{number:02x}00" for number in range(1, 9))
_VARIABLES = _SCHEME | {colour: f"c{number}" for number, colour in enumerate(SERIES)}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}

NARROW, _WIDE = 350.0, {1: 640.0, 2: 530.0}
"""Width of a drawing among three or more in a figure, and among so few; together they are as wide as the page."""

_UNITS_PER_INCH = 72

_SAID = read_toml(Path(str(resources.files("advl_pipeline.reporting") / "assets" / "figures.toml")))
_SERIES_OF = "series:"
_METADATA = ("Creator", "Date", "Format", "Type")
_ON_THE_PAGE = {
    r'<defs>\s*<(style|clipPath).*?</defs>| clip-path="[^"]*"(?=[^<]*>)': "",
    f'<g id="{_SERIES_OF}': '<g class="series" data-series="',
    r'<g id="[^"]*"': "<g",
    "xlink:href": "href",
    r"\s*\n\s*": " ",
}
"""What a file has and a part of a page has not: a style of its own, clipping, and names that are not unique."""

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
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    _, size, content = re.split(r"<svg [^>]*( width[^>]*)>", buffer.getvalue(), maxsplit=1)
    width, height = (number.removesuffix("pt") for number in re.findall(r' (?:width|height)="([^"]*)"', size))
    told = f'<title id="{identifier}-t">{escape(title)}</title><desc id="{identifier}-d">{escape(description)}</desc>'
    begins = (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{identifier}-t {identifier}-d">'
    )
    for pattern, replacement in _ON_THE_PAGE.items():
        content = re.sub(pattern, replacement, content, flags=re.DOTALL)
    return Markup(begins + told + re.sub(r'style="([^"]*)"(?=[^<]*>)', _attributes, content))


def _attributes(style: re.Match[str]) -> str:
    """Turn a style into attributes of its element, in the colours and the fonts of the page."""
    pairs = (declaration.strip().split(": ", maxsplit=1) for declaration in style[1].split(";"))
    told = " ".join(f'{name}="{value}"' for name, value in pairs if name != "font-family")
    return re.sub(r"#\w{6}", lambda colour: f"var(--{_VARIABLES[colour[0]]})", told)
