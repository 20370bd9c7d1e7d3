"""Place things in a picture so that they hardly touch and stand in the relations that the items need.

Sequential rejection: things are placed one after the other, each where it satisfies every rule that is already
decidable; a dead end starts again. All numbers are whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.relations import Centre
from advl_pipeline.errors import AdvlError

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


def place(draws: Draws, count: int, rule: Rule) -> tuple[Spot, ...]:
    """Return `count` spots inside the picture that obey the rule and keep apart, but for two that may overlap.

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
    leaning = draws.between(1, count - 1) if count > 1 and not draws.below(_LEANING) else None
    for position in range(count):
        size, tilt = draws.pick(sizes), draws.pick(TILTS)
        for _ in range(_TRIES):
            support = draws.pick(spots) if position == leaning else None
            spot = _beside(support, size, tilt, draws) if support else _anywhere(size, tilt, draws)
            if (
                spot.inside
                and all(_gap(spot, other) >= _MARGIN for other in spots if other is not support)
                and rule([*(other.centre for other in spots), spot.centre])
            ):
                spots.append(spot)
                break
        else:
            return None
    return spots


def _anywhere(size: int, tilt: int, draws: Draws) -> Spot:
    low = Spot(centre=(0, 0), size=size, tilt=tilt).reach + _MARGIN
    centre = (draws.between(low, PICTURE_SIDE - low), draws.between(low, PICTURE_SIDE - low))
    return Spot(centre=centre, size=size, tilt=tilt)


def _beside(support: Spot, size: int, tilt: int, draws: Draws) -> Spot:
    """Return a spot that overlaps with another one on a side of it."""
    alone = Spot(centre=(0, 0), size=size, tilt=tilt)
    distance = support.reach + alone.reach - draws.between(OVERLAP // 2, OVERLAP)
    offsets = [draws.pick((-distance, distance)), draws.between(-_ASIDE, _ASIDE)]
    x, y = offsets if draws.below(2) else offsets[::-1]
    return Spot(centre=(support.centre[0] + x, support.centre[1] + y), size=size, tilt=tilt)


def _gap(one: Spot, other: Spot) -> int:
    """Return the pixels between two things on the axis that parts them."""
    distance = max(abs(one.centre[0] - other.centre[0]), abs(one.centre[1] - other.centre[1]))
    return distance - one.reach - other.reach
