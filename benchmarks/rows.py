"""One row of the table: a figure, its goal, and the verdict, which takes the spread of its rounds into account.

Ratios are medians over rounds in which both sides take turns. Between two machines of one kind they moved by a third.
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
    """A measured figure and what it should be: at least the goal, or at most; without a goal it is a fact.

    `rounds` holds what each round gave, where there were several.

    `value` is None where this machine cannot measure it, and `detail` then says why; else it gives what the figure is
    made of.
    """

    name: str
    value: float | None
    goal: float | None = None
    at_least: bool = True
    detail: str = ""
    rounds: Sequence[float] = ()

    @property
    def verdict(self) -> str:
        """met, where every round met the goal; missed, where none did; else within noise."""
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
"""Measures some rows, given a folder of its own and whether to be quick: a few rounds on little data."""


def ratio_row(
    name: str, ours: Sequence[float], others: Sequence[float], *, goal: float, detail: str, at_least: bool = True
) -> Row:
    """Return the row of one figure as a multiple of another of the same round."""
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
        sections: for each, the `machine`, its `seconds` and its `rows`, as the JSON file holds them.
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
    """Put the table between the marks of a page; raises `ValueError` where it has none."""
    first, last = marks
    before, begin, rest = path.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table ({first} ... {last})")
    path.write_text(f"{before}{first}\n\n{table}\n\n{last}{after}", encoding="utf-8")


def describe_machine(*, quick: bool) -> str:
    """Return the day, the machine, its load now, and whether the measurement is a quick one."""
    return (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f} at its beginning, {'quick' if quick else 'full'}"
    )
