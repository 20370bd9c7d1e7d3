"""Draw a scene with whole-number arithmetic alone, so that every machine gets the same pixels.

Where arrays are floating, they hold whole numbers below 2**24 (float32) or 2**53 (float64): sums and products are
exact in any order, so the matrix products are too. Legend: pictures are uint8 (H, W, 3); sprites uint8 (H, W, 4) with
premultiplied alpha. Coordinates inside sprites are fixed-point with `_FRACTION` bits.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """Artwork ready to be put down: pixels, where their upper left corner goes and the visible part's box.

    Both places are relative to the centre of the thing.
    """

    pixels: Sprite
    corner: tuple[int, int]
    box: Box


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


def _paste(picture: Picture, thing: Thing, style: Style) -> Box:
    stamp = turned(thing.kind, style, thing.spot.size, thing.spot.tilt)
    x, y = thing.spot.centre
    left, top = x + stamp.corner[0], y + stamp.corner[1]
    height, width = stamp.pixels.shape[:2]
    area = picture[top : top + height, left : left + width]
    # (n + 128 + (n + 128) / 256) / 256, rounded down, is n / 255 to the nearest whole number for n up to 255 * 255.
    shown = area * (255 - stamp.pixels[..., 3:].astype(np.uint32)) + 128
    area[...] = stamp.pixels[..., :3] + ((shown + (shown >> 8)) >> 8)
    x1, y1, x2, y2 = stamp.box
    return (x + x1, y + y1, x + x2, y + y2)


@functools.lru_cache(maxsize=4096)
def turned(kind: Kind, style: Style, size: int, tilt: int) -> Stamp:
    """Return a kind's artwork with its longer side scaled to `size` pixels and turned by `tilt` degrees."""
    sprite = _scaled_artwork(kind, style, size)
    height, width = sprite.shape[:2]
    padded = np.zeros((height + 2, width + 2, 4), dtype=np.int32)
    padded[1:-1, 1:-1] = sprite
    side = -(-size * 6 // 5) // 2 * 2
    steps = (2 * np.arange(side, dtype=np.int64) + 1 - side) * _ONE // 2
    cosine, sine = _COSINES[abs(tilt)], _SINES[abs(tilt)] * (1 if tilt >= 0 else -1)
    x, y = steps[None, :], steps[:, None]
    # Each pixel is looked up where it was before the thing was turned; y grows downwards.
    source_x = ((x * cosine - y * sine) >> _FRACTION) + (width + 1) * _ONE // 2
    source_y = ((x * sine + y * cosine) >> _FRACTION) + (height + 1) * _ONE // 2
    pixels = _bilinear(padded, source_x.astype(np.int32), source_y.astype(np.int32)).astype(np.uint8)
    x1, y1, x2, y2 = _extent(pixels, 1)
    seen = _extent(pixels, _VISIBLE)
    half = side // 2
    return Stamp(
        pixels=np.ascontiguousarray(pixels[y1:y2, x1:x2]),
        corner=(x1 - half, y1 - half),
        box=(seen[0] - half, seen[1] - half, seen[2] - half, seen[3] - half),
    )


def _extent(pixels: Sprite, least: int) -> Box:
    """Return the box of the pixels with at least this alpha."""
    seen = pixels[..., 3] >= least
    rows, columns = np.nonzero(seen.any(axis=1))[0], np.nonzero(seen.any(axis=0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@functools.lru_cache(maxsize=2048)
def _scaled_artwork(kind: Kind, style: Style, size: int) -> Sprite:
    return scaled(load_sprite(kind, style), size)


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
    padded: npt.NDArray[np.int32], x: npt.NDArray[np.int32], y: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Sample at fixed-point positions; the outermost pixels of `padded` are transparent and stand for the outside."""
    height, width = padded.shape[:2]
    x = np.clip(x, 0, (width - 1) * _ONE - 1)
    y = np.clip(y, 0, (height - 1) * _ONE - 1)
    corner = (y >> _FRACTION) * width + (x >> _FRACTION)
    right = ((x & (_ONE - 1)) >> (_FRACTION - _WEIGHT_BITS))[..., None]
    down = ((y & (_ONE - 1)) >> (_FRACTION - _WEIGHT_BITS))[..., None]
    full = 1 << _WEIGHT_BITS
    flat = padded.reshape(-1, padded.shape[2])
    upper = flat[corner] * (full - right) + flat[corner + 1] * right
    lower = flat[corner + width] * (full - right) + flat[corner + width + 1] * right
    sampled: npt.NDArray[np.int32] = (upper * (full - down) + lower * down) >> (2 * _WEIGHT_BITS)
    return sampled
