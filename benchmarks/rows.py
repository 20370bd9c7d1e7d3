"""One row of the table: a figure, its goal, and a verdict that accounts for the spread over rounds.

Ratios are medians over rounds in which both sides alternate. Between two machines of one type they differed by a
third.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """A measured figure and its goal, a lower or an upper bound; a row without a goal is informative.

    `rounds` contains the result of each round if there were several. `value` is None if this machine cannot measure
    it, and `detail` then says why; otherwise `detail` gives the components of the figure.
    """

    name: str
    value: float | None
    goal: float | None = None
    at_least: bool = True
    detail: str = ""
    rounds: Sequence[float] = ()

    @property
    def verdict(self) -> str:
        """`met` if every round met the goal, `missed` if none did, else `within noise`."""
        if self.goal is None:
            return ""
        if self.value is None:
            return "missed"
        met = {ratio >= self.goal if self.at_least else ratio <= self.goal for ratio in self.rounds or (self.value,)}
        return "within noise" if len(met) == 2 else "met" if met == {True} else "missed"

    @property
    def measured(self) -> str:
        spread = f" ({min(self.rounds):.3g} to {max(self.rounds):.3g})" if self.rounds else ""
        return "not measured" if self.value is None else f"{self.value:.3g}{spread}"

    @property
    def bound(self) -> str:
        return "" if self.goal is None else f"{'at least' if self.at_least else 'at most'} {self.goal:g}"


Section = Callable[[Path, bool], list[Row]]
"""Measures some rows, given a working folder and whether to be quick (a few rounds on little data)."""


def ratio_row(
    name: str, ours: Sequence[float], others: Sequence[float], *, goal: float, detail: str, at_least: bool = True
) -> Row:
    """Return the row of a ratio: one figure as a multiple of another from the same round."""
    rounds = [mine / other for mine, other in zip(ours, others, strict=True)]
    value = statistics.median(rounds)
    return Row(name=name, value=value, goal=goal, at_least=at_least, detail=detail, rounds=rounds)


def thousands(rates: Sequence[float]) -> str:
    """Return the median rate in thousands, for a row's detail."""
    return f"{statistics.median(rates) / 1e3:.1f}"


MARKS = "<!-- measured: begin -->", "<!-- measured: end -->"
GPU_MARKS = "<!-- measured on a GPU: begin -->", "<!-- measured on a GPU: end -->"


def render(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table in Markdown.

    Args:
        sections: for each, the `machine`, its `seconds` and its `rows`, as in the JSON file.
    """
    parts = []
    for name, section in sections.items():
        rows = [Row(**row) for row in section["rows"]]
        parts.append(f"**{name}**: {section['machine']}; {section['seconds']:.0f} s.")
        cells = [[row.name, row.measured, row.bound, row.verdict, row.detail] for row in rows]
        table = [["what", "found", "goal", "", "made of"], ["---"] * 5, *cells]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in table))
    return "\n\n".join(parts)


def write_page(path: Path, table: str, *, marks: tuple[str, str] = MARKS) -> None:
    """Write the table between the marks of a page; raises `ValueError` if the page has no marks."""
    first, last = marks
    before, begin, rest = path.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table ({first} ... {last})")
    path.write_text(f"{before}{first}\n\n{table}\n\n{last}{after}", encoding="utf-8")


def describe_machine(*, quick: bool) -> str:
    """Return the date, the machine, its current load, and whether the measurement is a quick one."""
    return (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f} at its beginning, {'quick' if quick else 'full'}"
    )
