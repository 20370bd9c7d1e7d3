"""One row of the table: a figure, its goal, and the verdict, which takes the spread of its rounds into account.

Ratios are medians over rounds in which both sides take turns. Between two machines of one kind they moved by a third.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
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
        met = {found >= self.goal if self.at_least else found <= self.goal for found in self.rounds or (self.value,)}
        return "within noise" if len(met) == 2 else "met" if met == {True} else "missed"

    @property
    def found(self) -> str:
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
    rounds = [own / other for own, other in zip(ours, others, strict=True)]
    value = statistics.median(rounds)
    return Row(name=name, value=value, goal=goal, at_least=at_least, detail=detail, rounds=rounds)


def thousands(rates: Sequence[float]) -> str:
    """Return the median rate in thousands, for a row's detail."""
    return f"{statistics.median(rates) / 1e3:.1f}"
