"""Drawings of a page: matplotlib lays them out, and the page's style sheet colours them, light and dark.

A colour is drawn by a stand-in, which becomes a class of the element: `fill-soft`, `stroke-c1`. So one drawing serves
both schemes, and no element has a style of its own, which the page's policy would refuse. One unit is a CSS pixel.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

INK, SOFT, GRID, PAPER, BAND, GOOD, BAD = (f"#0{number}0000" for number in range(1, 8))
SERIES = tuple(f"#00{number:02x}00" for number in range(1, 9))
_CLASSES = dict(
    zip((INK, SOFT, GRID, PAPER, BAND, GOOD, BAD), "ink soft grid paper band good bad".split(), strict=True)
)
_CLASSES |= {colour: f"c{number}" for number, colour in enumerate(SERIES)}

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_UNITS_PER_INCH = 72
_KEPT = re.compile(
    r"stroke-(width|dasharray|linecap|opacity)|fill-opacity|opacity|text-anchor|font-(size|weight)|fill|stroke"
)
_SERIES_OF = "series:"


def axes(
    width: float, height: float, *, left: float = 6, right: float = 8, top: float = 8, bottom: float = 22
) -> Axes:
    """Return axes of a drawing without frame or ticks, with margins in pixels."""
    figure = Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), dpi=_UNITS_PER_INCH)
    area = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    made: Axes = figure.add_axes(area)
    made.set_frame_on(False)
    made.set_xticks([])
    made.set_yticks([])
    return made


def mark_ticks(drawn: Axes, which: str, places: list[float], labels: list[str], *, lines: bool = True) -> None:
    """Name places of the axis "x" or "y", each with a thin line across."""
    axis = drawn.xaxis if which == "x" else drawn.yaxis
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter(labels))
    drawn.tick_params(axis=which, length=0, pad=6, labelsize=11, labelcolor=SOFT)  # type: ignore[arg-type]
    if lines:
        drawn.grid(axis=which, color=GRID, linewidth=1)  # type: ignore[arg-type]
        drawn.set_axisbelow(True)


def series_of(method: str) -> str:
    """Return the group id of what is drawn for a method, which its entry in a legend emphasises."""
    return f"{_SERIES_OF}{method}"


def as_svg(drawn: Axes, *, identifier: str, title: str, description: str) -> Markup:
    """Return the drawing as an element with a text alternative; with no title it is decoration.

    Args:
        identifier: unique on the page.
    """
    buffer, figure = io.StringIO(), drawn.get_figure(root=True)
    assert figure is not None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "advl", "svg.id": None}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for tag in ("metadata", "defs"):
        for found in root.findall(f"{_SVG}{tag}"):
            root.remove(found)
    used = {element.get(_HREF, "").removeprefix("#") for element in root.iter(f"{_SVG}use")}
    for element in root.iter():
        _theme(element, identifier, used)
    root.attrib = {
        "width": root.attrib["width"].removesuffix("pt"),
        "height": root.attrib["height"].removesuffix("pt"),
    }
    root.set("viewBox", f"0 0 {root.get('width')} {root.get('height')}")
    if title:
        root.attrib |= {"role": "img", "aria-labelledby": f"{identifier}-t {identifier}-d"}
        for tag, text in (("desc", description), ("title", title)):
            told = ElementTree.Element(tag, {"id": f"{identifier}-{tag[0]}"})
            told.text = text
            root.insert(0, told)
    else:
        root.attrib |= {"aria-hidden": "true", "focusable": "false"}
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
