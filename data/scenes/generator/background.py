"""What stands behind things, a soft pale surface or two, and the bar that may stand before them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import PICTURE_SIDE
from advl_data.scenes.generator.relations import Centre

Picture = npt.NDArray[np.uint8]

_KNOTS: Final = 4
_PALE: Final = (176, 246)
"""Range of the background's channels."""

_VARIATION: Final = 14
_SECOND: Final = 24
"""Steps by which a second surface differs from the first, at most, in each channel."""

_PATTERNS: Final = ("plain", "plain", "floor", "stripes")
_HORIZON: Final = (PICTURE_SIDE * 2 // 5, PICTURE_SIDE * 4 // 5)
_STRIPE: Final = (20, 44)

_BAR_WIDTHS: Final = (5, 6, 7, 8)
_BAR_OFFSET: Final = 12
"""Pixels by which a bar may miss the centre of the thing that it crosses."""


def background(draws: Draws) -> Picture:
    """Return a pale picture: one soft surface, a wall and a floor, or broad stripes."""
    base = [draws.between(*_PALE) for _ in range(3)]
    picture = _surface(base, draws)
    pattern = draws.pick(_PATTERNS)
    if pattern == "plain":
        return picture
    second = _surface([channel + draws.between(-_SECOND, _SECOND) for channel in base], draws)
    rows = np.arange(PICTURE_SIDE)
    if pattern == "floor":
        return np.where((rows >= draws.between(*_HORIZON))[:, None, None], second, picture)
    stripes = rows // draws.between(*_STRIPE) % 2 == 0
    return np.where(stripes[:, None, None] if draws.below(2) else stripes[None, :, None], second, picture)


def _surface(base: list[int], draws: Draws) -> Picture:
    """Return a picture whose colour varies softly: a coarse grid of colours, interpolated."""
    grid = np.array(
        [
            [[channel + draws.between(-_VARIATION, _VARIATION) for channel in base] for _ in range(_KNOTS)]
            for _ in range(_KNOTS)
        ],
        dtype=np.float32,
    )
    weights = _knot_weights()
    channels = (weights @ np.moveaxis(grid, 2, 0) @ weights.T).astype(np.int32) // PICTURE_SIDE**2
    return np.ascontiguousarray(np.moveaxis(np.minimum(channels, 255), 0, 2), dtype=np.uint8)


@functools.cache
def _knot_weights() -> npt.NDArray[np.float32]:
    """Whole-number weights (PICTURE_SIDE, _KNOTS) of linear interpolation; each row sums to PICTURE_SIDE."""
    position = np.arange(PICTURE_SIDE) * (_KNOTS - 1)
    knot, part = position // PICTURE_SIDE, position % PICTURE_SIDE
    weights = np.zeros((PICTURE_SIDE, _KNOTS), dtype=np.float32)
    weights[np.arange(PICTURE_SIDE), knot] = PICTURE_SIDE - part
    weights[np.arange(PICTURE_SIDE), knot + 1] = part
    return weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A pole or a rail from edge to edge of the picture, before all things."""

    upright: bool
    start: int
    width: int

    @property
    def area(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        across, along = slice(self.start, self.start + self.width), slice(None)
        return (along, across) if self.upright else (across, along)


def draw_bar(centre: Centre, draws: Draws) -> Bar:
    """Draw a bar that crosses the thing at a centre."""
    upright, width = bool(draws.below(2)), draws.pick(_BAR_WIDTHS)
    middle = centre[0 if upright else 1] + draws.between(-_BAR_OFFSET, _BAR_OFFSET)
    return Bar(upright=upright, start=middle - width // 2, width=width)
