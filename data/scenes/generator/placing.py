"""Positions of things in a picture and their relations; all numbers are integer pixels.

A relation requires that one axis dominates clearly; ambiguous pairs have no relation. Things are placed by sequential
rejection: one after the other, each at a position that satisfies every rule that is already decidable; a dead end
restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from advl_data.scenes.generator.draws import Draws
from advl_pipeline.base.errors import AdvlError

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

_STICKS_OUT: Final = 12
"""Minimum pixels between an outermost thing and the next one."""

PICTURE_SIDE: Final = 224
SIZES: Final = (48, 52, 56, 60, 64, 68, 72)
"""Longer side of a thing before rotation."""

TILTS: Final = (-16, -12, -8, -4, 0, 4, 8, 12, 16)
"""Degrees, clockwise."""

OVERLAP: Final = 26
"""Maximum overlap in pixels of two things on their separating axis; all others are disjoint."""

_LEANING: Final = 2
"""One in this many scenes has a thing that leans on another."""

_ASIDE: Final = 16
"""Maximum offset in pixels of a leaning thing from the other's centre on the other axis."""

_MARGIN: Final = 2
_REACH: Final = {0: 20, 4: 22, 8: 23, 12: 24, 16: 25}
_REACH_WHOLE: Final = 40
"""Denominator of `_REACH`: a square of side 1 rotated by t extends (cos t + sin t) / 2 from its centre, or less."""

_TRIES: Final = 40
_RESTARTS: Final = 4000

Rule = Callable[[Sequence[Centre]], bool]
"""Function that returns whether the things placed so far are valid; called with a prefix of the centres."""


def leaning(thing: Centre, reference: Centre) -> Relation:
    """Return the relation of `thing` to `reference` by the larger offset, even if ambiguous; y grows downwards."""
    dx, dy = thing[0] - reference[0], thing[1] - reference[1]
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def relation(thing: Centre, reference: Centre) -> Relation | None:
    """Return the relation of `thing` to `reference`, or None if it is ambiguous."""
    less, more = sorted(abs(coordinate - other) for coordinate, other in zip(thing, reference, strict=True))
    return leaning(thing, reference) if more * _CLEAR[1] >= less * _CLEAR[0] else None


def is_unique(target: int, reference: int, wanted: Relation, centres: Sequence[Centre]) -> bool:
    """Return whether only `target` has the relation to `reference`, and no other thing ambiguously."""
    if relation(centres[target], centres[reference]) != wanted:
        return False
    others = (index for index in range(len(centres)) if index not in (target, reference))
    return all(relation(centres[index], centres[reference]) not in (wanted, None) for index in others)


def outermost(side: Relation, centres: Sequence[Centre], among: Iterable[int]) -> int | None:
    """Return the outermost thing on one side, or None unless it clearly exceeds all others.

    Args:
        side: "left" and "above" look for the smallest coordinate, "right" and "below" for the largest.
        centres: all things of the picture.
        among: the things that may be returned; the others only count as competitors.
    """
    axis = 0 if side in ALONG["horizontal"] else 1
    sign = 1 if side in ("left", "above") else -1
    first, second, *_ = sorted(range(len(centres)), key=lambda index: sign * centres[index][axis])
    clear = sign * (centres[second][axis] - centres[first][axis]) >= _STICKS_OUT
    return first if clear and first in set(among) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """Position of a thing: centre and longer side in pixels, tilt in degrees."""

    centre: Centre
    size: int
    tilt: int

    @property
    def reach(self) -> int:
        """Maximum extent of the thing from its centre on either axis, in pixels."""
        return -(-self.size * _REACH[abs(self.tilt)] // _REACH_WHOLE)

    @property
    def inside(self) -> bool:
        """Whether the thing is completely in the picture."""
        low = self.reach + _MARGIN
        return all(low <= coordinate <= PICTURE_SIDE - low for coordinate in self.centre)

    def gap(self, other: Spot) -> int:
        """Return the pixels between this thing and another one on their separating axis."""
        distance = max(abs(self.centre[0] - other.centre[0]), abs(self.centre[1] - other.centre[1]))
        return distance - self.reach - other.reach


def place(draws: Draws, count: int, rule: Rule) -> tuple[Spot, ...]:
    """Return `count` spots inside the picture that satisfy the rule and are disjoint, except two that may overlap.

    Raises:
        AdvlError: the rule cannot be satisfied (a bug in the caller).
    """
    for _ in range(_RESTARTS):
        if (spots := _attempt(draws, count, rule)) is not None:
            return tuple(spots)
    raise AdvlError("No placement obeys the rule of a scene.", why=f"{count} things, {_RESTARTS} attempts")


def _attempt(draws: Draws, count: int, rule: Rule) -> list[Spot] | None:
    # Five large things leave no space for relations.
    sizes = SIZES[: len(SIZES) - 2 * max(0, count - 3)]
    spots: list[Spot] = []
    leans = draws.between(1, count - 1) if count > 1 and not draws.below(_LEANING) else None
    for position in range(count):
        size, tilt = draws.pick(sizes), draws.pick(TILTS)
        reach = Spot(centre=(0, 0), size=size, tilt=tilt).reach
        for _ in range(_TRIES):
            support = draws.pick(spots) if position == leans else None
            if support is not None:
                # It overlaps the other one on one of its sides.
                distance = support.reach + reach - draws.between(OVERLAP // 2, OVERLAP)
                offsets = [draws.pick((-distance, distance)), draws.between(-_ASIDE, _ASIDE)]
                x, y = offsets if draws.below(2) else offsets[::-1]
                centre = (support.centre[0] + x, support.centre[1] + y)
            else:
                low = reach + _MARGIN
                centre = (draws.between(low, PICTURE_SIDE - low), draws.between(low, PICTURE_SIDE - low))
            spot = Spot(centre=centre, size=size, tilt=tilt)
            if (
                spot.inside
                and all(spot.gap(other) >= _MARGIN for other in spots if other is not support)
                and rule([*(other.centre for other in spots), spot.centre])
            ):
                spots.append(spot)
                break
        else:
            return None
    return spots
