"""A small canvas for figures: SVG elements whose colours are classes, so that one picture serves light and dark.

Coordinates are in CSS pixels of the viewBox. Every text that enters is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Scale = Callable[[float], float]


class Canvas:
    """Collects elements and renders one labelled `<svg>`."""

    def __init__(self, *, width: float, height: float, identifier: str, title: str, description: str) -> None:
        self.width = width
        self.height = height
        self._identifier = identifier
        self._title = title
        self._description = description
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, classes: str) -> None:
        self._add("line", classes, x1=x1, y1=y1, x2=x2, y2=y2)

    def rect(self, x: float, y: float, width: float, height: float, classes: str, *, radius: float = 0.0) -> None:
        self._add("rect", classes, x=x, y=y, width=max(0.0, width), height=max(0.0, height), rx=radius)

    def path(self, points: Sequence[tuple[float, float]], classes: str, *, closed: bool = False) -> None:
        """Draw a polyline, or an area when closed."""
        commands = " ".join(f"{'M' if index == 0 else 'L'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
        self._parts.append(f'<path class="{escape(classes)}" d="{commands}{" Z" if closed else ""}"/>')

    def text(self, x: float, y: float, content: str, classes: str = "", *, anchor: str = "start") -> None:
        self._parts.append(
            f'<text class="{escape(classes)}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
        )

    def marker(self, x: float, y: float, shape: str, classes: str, *, radius: float = 4.0) -> None:
        """Draw a circle, square, diamond or triangle centred at a point."""
        if shape == "circle":
            self._add("circle", classes, cx=x, cy=y, r=radius)
            return
        corners = {
            "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
            "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
            "triangle": [(0, -1.2), (1.1, 0.85), (-1.1, 0.85)],
        }[shape]
        self.path([(x + radius * dx, y + radius * dy) for dx, dy in corners], classes, closed=True)

    def open_group(self, classes: str, series: str = "") -> None:
        """Begin a group; `series` lets the page emphasise one method in all figures."""
        named = f' data-series="{escape(series)}"' if series else ""
        self._parts.append(f'<g class="{escape(classes)}"{named}>')

    def close_group(self) -> None:
        self._parts.append("</g>")

    def render(self) -> str:
        """Return the element; title and description are its text alternative."""
        name = escape(self._identifier)
        return (
            f'<svg width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'role="img" aria-labelledby="{name}-t {name}-d">'
            f'<title id="{name}-t">{escape(self._title)}</title>'
            f'<desc id="{name}-d">{escape(self._description)}</desc>' + "".join(self._parts) + "</svg>"
        )

    def _add(self, tag: str, classes: str, **numbers: float) -> None:
        attributes = " ".join(f'{name}="{value:.1f}"' for name, value in numbers.items())
        self._parts.append(f'<{tag} class="{escape(classes)}" {attributes}/>')


def linear(domain: tuple[float, float], target: tuple[float, float]) -> Scale:
    """Map a domain linearly onto pixels; a domain without width maps to the middle."""
    (low, high), (start, end) = domain, target
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def logarithmic(domain: tuple[float, float], target: tuple[float, float]) -> Scale:
    """As `linear`, on the logarithm of positive values."""
    inner = linear((math.log(domain[0]), math.log(domain[1])), target)
    return lambda value: inner(math.log(value))


def nice_ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return at least two round numbers that cover [low, high], with steps of 1, 2, 2.5 or 5 times a power of ten."""
    # Ticks are rounded to ten decimals.
    span = high - low if high - low > 1e-9 else 1.0
    raw = span / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    return [round(index * step, 10) for index in range(first, last + 1)]
