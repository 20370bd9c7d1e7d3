"""How a thing and a picture look, beside what they show: style, pose, colours of line art, background, bars, light.

Every draw is made whether the style needs it or not, so that splits of one plan differ in their styles alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from advl_data.scenes.generator.artwork import LINE_STYLES, Sprite, Style, offered_styles
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import PICTURE_SIDE
from advl_data.scenes.generator.relations import Centre
from advl_data.scenes.generator.vocabulary import Kind

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

Colour = tuple[int, int, int]

_INKS: Final[tuple[Colour, ...]] = (
    (20, 20, 24),
    (96, 24, 24),
    (20, 72, 36),
    (20, 40, 112),
    (88, 28, 100),
    (92, 56, 16),
    (12, 84, 92),
)
_PAPERS: Final[tuple[Colour | None, ...]] = (
    None,
    (255, 255, 255),
    (250, 214, 120),
    (244, 160, 140),
    (160, 216, 150),
    (150, 196, 246),
    (214, 176, 236),
)
"""What line art is filled with; None lets the background through."""

_SQUEEZES: Final = (256, 240, 224)
"""Width or height of a thing in 256ths of its drawing's."""

_CONTRAST: Final = (208, 276)
_BRIGHTNESS: Final = (-20, 12)
_TINT: Final = (232, 256)
"""Ranges of the light: contrast and each channel's gain in 256ths, brightness in steps of a channel."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How one thing is drawn: its style, whether mirrored, its width and height in 256ths, the tint of line art."""

    style: Style
    mirrored: bool
    width: int
    height: int
    ink: Colour
    paper: Colour | None


def draw_look(kind: Kind, styles: Sequence[Style], draws: Draws) -> Look:
    """Draw the look of a thing, in one of the styles that are offered for its kind."""
    squeeze, across = draws.pick(_SQUEEZES), draws.below(2)
    return Look(
        style=draws.pick(offered_styles(kind, styles)),
        mirrored=bool(draws.below(2)),
        width=squeeze if across else 256,
        height=256 if across else squeeze,
        ink=draws.pick(_INKS),
        paper=draws.pick(_PAPERS),
    )


def coloured(sprite: Sprite, look: Look) -> Sprite:
    """Return a sprite in red, green, blue, alpha: as it is, or tinted where it is line art."""
    if look.style not in LINE_STYLES:
        return sprite
    ink, filled = (sprite[..., channel, None].astype(np.uint32) for channel in (0, 3))
    shown = ink * np.array(look.ink, dtype=np.uint32)
    if look.paper is not None:
        shown += (filled - ink) * np.array(look.paper, dtype=np.uint32)
    alpha = ink if look.paper is None else filled
    tinted: Sprite = np.concatenate([(shown + 127) // 255, alpha], axis=2).astype(np.uint8)
    return tinted


def light(draws: Draws) -> npt.NDArray[np.uint8]:
    """Draw the light of a picture: (3, 256), what each channel's values become."""
    contrast, brightness = draws.between(*_CONTRAST), draws.between(*_BRIGHTNESS)
    lit = ((np.arange(256, dtype=np.int32) - 128) * contrast >> 8) + 128 + brightness
    gains = np.array([draws.between(*_TINT) for _ in range(3)], dtype=np.int32)
    tables: npt.NDArray[np.uint8] = np.clip(lit[None, :] * gains[:, None] >> 8, 0, 255).astype(np.uint8)
    return tables
