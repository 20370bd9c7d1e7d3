"""Draw a scene with whole-number arithmetic alone, so that every machine gets the same pixels.

Where arrays are float64, they hold whole numbers below 2**53: sums and products are exact in any order, so the
matrix products are too. Legend: pictures are uint8 (H, W, 3); sprites uint8 (H, W, 4) with premultiplied alpha.
Coordinates inside sprites are fixed-point with `_FRACTION` bits.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from advl_pipeline.datasets.scenes.artwork import Sprite, Style, load_sprite
from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.placement import PICTURE_SIDE
from advl_pipeline.datasets.scenes.scene import Thing
from advl_pipeline.datasets.scenes.vocabulary import Kind

Picture = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

_FRACTION: Final = 16
_ONE: Final = 1 << _FRACTION
_WEIGHT_BITS: Final = 8
_VISIBLE: Final = 24
"""Alpha from which a pixel counts as part of a thing when its box is taken."""

_COSINES: Final = {0: 65536, 4: 65376, 8: 64898, 12: 64104}
_SINES: Final = {0: 0, 4: 4572, 8: 9121, 12: 13626}
"""Degrees -> cosine and sine times 2**16, rounded."""

_KNOTS: Final = 4
_PALE: Final = (176, 246)
"""Range of the background's channels."""

_VARIATION: Final = 14
_JPEG_QUALITY: Final = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A drawn scene: the JPEG file and, per thing, the box (x1, y1, x2, y2) in pixels, x2 and y2 exclusive."""

    jpeg: bytes
    boxes: tuple[Box, ...]


def draw_scene(things: Sequence[Thing], style: Style, draws: Draws) -> Drawing:
    """Draw things on a soft background; the draws decide the background alone."""
    picture = background(draws)
    boxes = tuple(_paste(picture, thing, style) for thing in things)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return Drawing(jpeg=buffer.getvalue(), boxes=boxes)


def background(draws: Draws) -> Picture:
    """Return a pale picture whose colour varies softly: a coarse grid of colours, interpolated."""
    base = [draws.between(*_PALE) for _ in range(3)]
    grid = np.array(
        [
            [[channel + draws.between(-_VARIATION, _VARIATION) for channel in base] for _ in range(_KNOTS)]
            for _ in range(_KNOTS)
        ],
        dtype=np.float64,
    )
    weights = _knot_weights()
    blended = np.moveaxis(weights @ np.moveaxis(grid, 2, 0) @ weights.T, 0, 2)
    return (blended.astype(np.int64) // PICTURE_SIDE**2).clip(0, 255).astype(np.uint8)


@functools.cache
def _knot_weights() -> npt.NDArray[np.float64]:
    """Whole-number weights (PICTURE_SIDE, _KNOTS) of linear interpolation; each row sums to PICTURE_SIDE."""
    position = np.arange(PICTURE_SIDE) * (_KNOTS - 1)
    knot, part = position // PICTURE_SIDE, position % PICTURE_SIDE
    weights = np.zeros((PICTURE_SIDE, _KNOTS))
    weights[np.arange(PICTURE_SIDE), knot] = PICTURE_SIDE - part
    weights[np.arange(PICTURE_SIDE), knot + 1] = part
    return weights


def _paste(picture: Picture, thing: Thing, style: Style) -> Box:
    stamp = turned(thing.kind, style, thing.spot.size, thing.spot.tilt)
    top, left = thing.spot.centre[1] - stamp.shape[0] // 2, thing.spot.centre[0] - stamp.shape[1] // 2
    area = picture[top : top + stamp.shape[0], left : left + stamp.shape[1]]
    alpha = stamp[..., 3:].astype(np.int32)
    area[...] = (stamp[..., :3] + (area * (255 - alpha) + 127) // 255).clip(0, 255)
    solid = stamp[..., 3] >= _VISIBLE
    rows, columns = np.nonzero(solid.any(axis=1))[0], np.nonzero(solid.any(axis=0))[0]
    return (
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    )


@functools.lru_cache(maxsize=8192)
def turned(kind: Kind, style: Style, size: int, tilt: int) -> Sprite:
    """Return a kind's artwork with its longer side scaled to `size` pixels and turned by `tilt` degrees.

    The result is a square that holds the turned artwork.
    """
    sprite = scaled(load_sprite(kind, style), size)
    height, width = sprite.shape[:2]
    padded = np.zeros((height + 2, width + 2, 4), dtype=np.int32)
    padded[1:-1, 1:-1] = sprite
    side = -(-size * 6 // 5) // 2 * 2
    steps = (2 * np.arange(side, dtype=np.int64) + 1 - side) * _ONE // 2
    cosine, sine = _COSINES[abs(tilt)], _SINES[abs(tilt)] * (1 if tilt >= 0 else -1)
    x, y = steps[None, :], steps[:, None]
    # Turning the picture counter-clockwise means looking up each pixel clockwise; y grows downwards.
    source_x = ((x * cosine - y * sine) >> _FRACTION) + (width + 1) * _ONE // 2
    source_y = ((x * sine + y * cosine) >> _FRACTION) + (height + 1) * _ONE // 2
    return _bilinear(padded, source_x, source_y).astype(np.uint8)


def scaled(sprite: Sprite, size: int) -> Sprite:
    """Scale a sprite by area so that its longer side has `size` pixels."""
    height, width = sprite.shape[:2]
    longer = max(height, width)
    new_height, new_width = (max(1, side * size // longer) for side in (height, width))
    rows, columns = _overlaps(new_height, height), _overlaps(new_width, width)
    channels = np.moveaxis(sprite.astype(np.float64), 2, 0)
    sums = np.moveaxis(rows @ channels @ columns.T, 0, 2).astype(np.int64)
    means: Sprite = ((sums + height * width // 2) // (height * width)).astype(np.uint8)
    return means


def _overlaps(new: int, old: int) -> npt.NDArray[np.float64]:
    """Whole-number overlaps (new, old) of the pixels of two rasters over the same length; each row sums to `old`."""
    new_start, old_start = np.arange(new)[:, None] * old, np.arange(old)[None, :] * new
    overlap = np.minimum(new_start + old, old_start + new) - np.maximum(new_start, old_start)
    return overlap.clip(0).astype(np.float64)


def _bilinear(
    padded: npt.NDArray[np.int32], x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Sample at fixed-point positions; the outermost pixels of `padded` are transparent and stand for the outside."""
    height, width = padded.shape[:2]
    x = np.clip(x, 0, (width - 1) * _ONE - 1)
    y = np.clip(y, 0, (height - 1) * _ONE - 1)
    corner = (y >> _FRACTION) * width + (x >> _FRACTION)
    right = ((x & (_ONE - 1)) >> (_FRACTION - _WEIGHT_BITS)).astype(np.int32)[..., None]
    down = ((y & (_ONE - 1)) >> (_FRACTION - _WEIGHT_BITS)).astype(np.int32)[..., None]
    full = 1 << _WEIGHT_BITS
    flat = padded.reshape(-1, padded.shape[2])
    upper = flat[corner] * (full - right) + flat[corner + 1] * right
    lower = flat[corner + width] * (full - right) + flat[corner + width + 1] * right
    sampled: npt.NDArray[np.int32] = (upper * (full - down) + lower * down) >> (2 * _WEIGHT_BITS)
    return sampled
