"""Where things stand in a picture, and how they stand to one another; all numbers are whole pixels.

A relation holds only where nobody would argue: one axis dominates clearly. In between there is none. Things are
placed by sequential rejection: one after the other, each where it satisfies every rule that is already decidable; a
dead end starts again.
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
"""Pixels by which an outermost thing must stick out beyond the next one."""

PICTURE_SIDE: Final = 224
SIZES: Final = (48, 52, 56, 60, 64, 68, 72)
"""Longer side of a thing before it is turned."""

TILTS: Final = (-16, -12, -8, -4, 0, 4, 8, 12, 16)
"""Degrees, clockwise."""

OVERLAP: Final = 26
"""Pixels that two things of a picture may share on the axis that parts them; all others stand apart."""

_LEANING: Final = 2
"""One scene in so many has a thing that leans on another."""

_ASIDE: Final = 16
"""Pixels by which a leaning thing may miss the other's centre on the other axis."""

_MARGIN: Final = 2
_REACH: Final = {0: 20, 4: 22, 8: 23, 12: 24, 16: 25}
_REACH_WHOLE: Final = 40
"""A square of side 1 that is turned by t stays within (cos t + sin t) / 2 of its centre: so many 40ths or less."""

_TRIES: Final = 40
_RESTARTS: Final = 4000

Rule = Callable[[Sequence[Centre]], bool]
"""Whether the things placed so far may stay; called with a prefix of the centres."""


def leaning(thing: Centre, reference: Centre) -> Relation:
    """Return how `thing` is to `reference` by the greater offset, however arguable it is; y grows downwards."""
    dx, dy = thing[0] - reference[0], thing[1] - reference[1]
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def relation(thing: Centre, reference: Centre) -> Relation | None:
    """Return how `thing` is to `reference`, or None where it is arguable."""
    less, more = sorted(abs(coordinate - other) for coordinate, other in zip(thing, reference, strict=True))
    return leaning(thing, reference) if more * _CLEAR[1] >= less * _CLEAR[0] else None


def is_unique(target: int, reference: int, wanted: Relation, centres: Sequence[Centre]) -> bool:
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
    axis = 0 if side in ALONG["horizontal"] else 1
    sign = 1 if side in ("left", "above") else -1
    first, second, *_ = sorted(range(len(centres)), key=lambda index: sign * centres[index][axis])
    clear = sign * (centres[second][axis] - centres[first][axis]) >= _STICKS_OUT
    return first if clear and first in set(among) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """Where a thing goes: centre and longer side in pixels, tilt in degrees."""

    centre: Centre
    size: int
    tilt: int

    @property
    def reach(self) -> int:
        """Pixels from the centre that the thing never exceeds on either axis."""
        return -(-self.size * _REACH[abs(self.tilt)] // _REACH_WHOLE)

    @property
    def inside(self) -> bool:
        """Whether all of the thing is in the picture."""
        low = self.reach + _MARGIN
        return all(low <= coordinate <= PICTURE_SIDE - low for coordinate in self.centre)

    def gap(self, other: Spot) -> int:
        """Return the pixels between this thing and another one on the axis that parts them."""
        distance = max(abs(self.centre[0] - other.centre[0]), abs(self.centre[1] - other.centre[1]))
        return distance - self.reach - other.reach


def place(draws: Draws, count: int, rule: Rule) -> tuple[Spot, ...]:
    """Return `count` spots inside the picture that obey the rule and keep apart, but for two that may overlap.

    Raises:
        AdvlError: the rule cannot be satisfied (a mistake in the caller).
    """
    for _ in range(_RESTARTS):
        if (spots := _attempt(draws, count, rule)) is not None:
            return tuple(spots)
    raise AdvlError("No placement obeys the rule of a scene.", why=f"{count} things, {_RESTARTS} attempts")


def _attempt(draws: Draws, count: int, rule: Rule) -> list[Spot] | None:
    # Five large things leave no room for relations.
    sizes = SIZES[: len(SIZES) - 2 * max(0, count - 3)]
    spots: list[Spot] = []
    leans = draws.between(1, count - 1) if count > 1 and not draws.below(_LEANING) else None
    for position in range(count):
        size, tilt = draws.pick(sizes), draws.pick(TILTS)
        reach = Spot(centre=(0, 0), size=size, tilt=tilt).reach
        for _ in range(_TRIES):
            support = draws.pick(spots) if position == leans else None
            if support is not None:
                # It overlaps with the other one on a side of that.
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
