"""Place things in a picture so that they do not touch and stand in the relations that the items need.

Sequential rejection: things are placed one after the other, each where it satisfies every rule that is already
decidable; a dead end starts again. All numbers are whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.relations import Centre
from advl_pipeline.errors import AdvlError

PICTURE_SIDE: Final = 224
SIZES: Final = (48, 52, 56, 60, 64, 68, 72)
"""Longer side of a thing before it is turned."""

TILTS: Final = (-12, -8, -4, 0, 4, 8, 12)
"""Degrees, clockwise."""

_MARGIN: Final = 2
_REACH: Final = (24, 40)
"""A turned square of side s stays within s * 24 / 40 of its centre: (cos 12 + sin 12) / 2 = 0.593 < 0.6."""

_TRIES: Final = 40
_RESTARTS: Final = 4000

Rule = Callable[[Sequence[Centre]], bool]
"""Whether the things placed so far may stay; called with a prefix of the centres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """Where a thing goes: centre and longer side in pixels, tilt in degrees."""

    centre: Centre
    size: int
    tilt: int

    @property
    def reach(self) -> int:
        """Pixels from the centre that the thing never exceeds on either axis."""
        return -(-self.size * _REACH[0] // _REACH[1])


def place(draws: Draws, count: int, rule: Rule) -> tuple[Spot, ...]:
    """Return `count` spots that keep apart, inside the picture, and obey the rule.

    Raises:
        AdvlError: the rule cannot be satisfied (a mistake in the caller).
    """
    for _ in range(_RESTARTS):
        spots = _attempt(draws, count, rule)
        if spots is not None:
            return tuple(spots)
    raise AdvlError("No placement obeys the rule of a scene.", why=f"{count} things, {_RESTARTS} attempts")


def _attempt(draws: Draws, count: int, rule: Rule) -> list[Spot] | None:
    # Five large things leave no room for relations.
    sizes = SIZES[: len(SIZES) - 2 * max(0, count - 3)] if count > 3 else SIZES
    spots: list[Spot] = []
    for _ in range(count):
        size, tilt = draws.pick(sizes), draws.pick(TILTS)
        low = Spot(centre=(0, 0), size=size, tilt=tilt).reach + _MARGIN
        for _ in range(_TRIES):
            centre = (draws.between(low, PICTURE_SIDE - low), draws.between(low, PICTURE_SIDE - low))
            spot = Spot(centre=centre, size=size, tilt=tilt)
            if all(_apart(spot, other) for other in spots) and rule([*(other.centre for other in spots), centre]):
                spots.append(spot)
                break
        else:
            return None
    return spots


def _apart(one: Spot, other: Spot) -> bool:
    distance = max(abs(one.centre[0] - other.centre[0]), abs(one.centre[1] - other.centre[1]))
    return distance >= one.reach + other.reach + _MARGIN
