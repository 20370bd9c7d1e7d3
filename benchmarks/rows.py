"""One row of the table: a figure and its goal. Ratios are medians over rounds in which both sides take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured figure and what it should be: at least the goal, or at most; without a goal it is a fact.

    `value` is None where this machine cannot measure it, and `detail` then says why; else it gives what the figure is
    made of.
    """

    name: str
    value: float | None
    goal: float | None = None
    at_least: bool = True
    detail: str = ""

    @property
    def verdict(self) -> str:
        """PASS or FAIL; a goal without a figure is missed."""
        if self.goal is None:
            return ""
        met = self.value is not None and (self.value >= self.goal if self.at_least else self.value <= self.goal)
        return "PASS" if met else "FAIL"

    @property
    def found(self) -> str:
        return "not measured" if self.value is None else f"{self.value:.3g}"

    @property
    def bound(self) -> str:
        return "" if self.goal is None else f"{'at least' if self.at_least else 'at most'} {self.goal:g}"


Section = Callable[[Path, bool], list[Row]]
"""Measures some rows, given a folder of its own and whether to be quick: a few rounds on little data."""


def median_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over rounds of one figure as a multiple of another of the same round."""
    return statistics.median(own / other for own, other in zip(ours, others, strict=True))


def thousands(rates: Sequence[float]) -> str:
    """Return the median rate in thousands, for a row's detail."""
    return f"{statistics.median(rates) / 1e3:.1f}"
