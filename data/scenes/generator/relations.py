"""Where things are relative to each other: pure functions on centres, in whole pixels.

A relation holds only where nobody would argue: one axis dominates clearly. In between there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

Relation = Literal["left", "right", "above", "below"]
Axis = Literal["horizontal", "vertical"]
Centre = tuple[int, int]

RELATIONS: Final[tuple[Relation, ...]] = ("left", "right", "above", "below")
INVERSE: Final[dict[Relation, Relation]] = {"left": "right", "right": "left", "above": "below", "below": "above"}
ALONG: Final[dict[Axis, tuple[Relation, Relation]]] = {
    "horizontal": ("left", "right"),
    "vertical": ("above", "below"),
}

PHRASES: Final[dict[Relation, str]] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}

_CLEAR: Final = (6, 5)
"""One offset must be at least 6/5 of the other for its axis to dominate."""

_MARGIN: Final = 12
"""Pixels by which an outermost thing must stick out beyond the next one."""


def axis_of(relation: Relation) -> Axis:
    """Return the axis that a relation lies on."""
    return "horizontal" if relation in ALONG["horizontal"] else "vertical"


def relation(thing: Centre, reference: Centre) -> Relation | None:
    """Return how `thing` lies to `reference` (y grows downwards), or None where it is arguable."""
    dx, dy = thing[0] - reference[0], thing[1] - reference[1]
    more, less = _CLEAR
    if abs(dx) * less >= abs(dy) * more:
        return "left" if dx < 0 else "right"
    if abs(dy) * less >= abs(dx) * more:
        return "above" if dy < 0 else "below"
    return None


def leaning(thing: Centre, reference: Centre) -> Relation:
    """Return the relation that the greater offset speaks for, however arguable it is."""
    dx, dy = thing[0] - reference[0], thing[1] - reference[1]
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def only_one(target: int, reference: int, wanted: Relation, centres: Sequence[Centre]) -> bool:
    """Tell whether `target` is the one thing that stands in the relation to `reference`, none other arguably so."""
    if relation(centres[target], centres[reference]) != wanted:
        return False
    others = (index for index in range(len(centres)) if index not in (target, reference))
    return all(relation(centres[index], centres[reference]) not in (wanted, None) for index in others)


def outermost(side: Relation, centres: Sequence[Centre], among: Iterable[int]) -> int | None:
    """Return the thing that is furthest to one side, or None unless it sticks out clearly from all others.

    Args:
        side: "left" and "above" look for the smallest coordinate, "right" and "below" for the largest.
        centres: all things of the picture.
        among: the things that may be returned; the others count as rivals.
    """
    axis = 0 if axis_of(side) == "horizontal" else 1
    sign = 1 if side in ("left", "above") else -1
    ranked = sorted(range(len(centres)), key=lambda index: sign * centres[index][axis])
    first, second = ranked[0], ranked[1]
    clear = sign * (centres[second][axis] - centres[first][axis]) >= _MARGIN
    return first if clear and first in set(among) else None
