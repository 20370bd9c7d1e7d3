"""Rendering of a scene: the looks of things and picture, and occlusion.

All arithmetic is on integers, so that every machine gets the same pixels from the same artwork. Floating-point arrays
contain integers below 2**24 (float32) or 2**53 (float64): sums and products are exact in any order, so the matrix
products are too. Every draw is made whether the style needs it or not, so that splits of one plan differ only in
their styles. Coordinates inside sprites are fixed-point with `_FRACTION` bits.

Pictures are uint8 (H, W, 3). Line art (`artwork.py`) has no colours; `coloured` tints it.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from advl_data.scenes.generator.artwork import LINE_STYLES, Sprite, Style, load_sprite, offered_styles
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.photographs import Crop, cropped, draw_crop
from advl_data.scenes.generator.placing import OVERLAP, PICTURE_SIDE, Centre, leaning, relation
from advl_data.scenes.generator.scene_plan import Thing
from advl_data.scenes.generator.vocabulary import Kind

Picture = npt.NDArray[np.uint8]
Area = tuple[slice, slice]
"""Rows and columns of a picture."""

_KNOTS: Final = 4
_PALE: Final = (176, 246)
"""Range of the background's channels."""

_VARIATION: Final = 14
_SECOND: Final = 24
"""Maximum difference of a second surface from the first, in steps per channel."""

_PATTERNS: Final = ("plain", "plain", "floor", "stripes")
_HORIZON: Final = (PICTURE_SIDE * 2 // 5, PICTURE_SIDE * 4 // 5)
_STRIPE: Final = (20, 44)

_BAR_WIDTHS: Final = (5, 6, 7, 8)
_BAR_OFFSET: Final = 12
"""Maximum offset in pixels of a bar from the centre of the thing that it crosses."""

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
"""Fill colours of line art; None is transparent."""

_SQUEEZES: Final = (256, 240, 224)
"""Width or height of a thing in 256ths of its drawing."""

_CONTRAST: Final = (208, 276)
_BRIGHTNESS: Final = (-20, 12)
_TINT: Final = (232, 256)
"""Ranges of the light: contrast and each channel's gain in 256ths, brightness in steps of a channel."""


def background(draws: Draws) -> Picture:
    """Return a pale background: one soft surface, a wall and a floor, or broad stripes."""
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
    """Return a picture with softly varying colour: an interpolated coarse grid of colours."""
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
    """Return integer weights (PICTURE_SIDE, _KNOTS) of linear interpolation; each row sums to PICTURE_SIDE."""
    position = np.arange(PICTURE_SIDE) * (_KNOTS - 1)
    knot, part = position // PICTURE_SIDE, position % PICTURE_SIDE
    weights = np.zeros((PICTURE_SIDE, _KNOTS), dtype=np.float32)
    weights[np.arange(PICTURE_SIDE), knot] = PICTURE_SIDE - part
    weights[np.arange(PICTURE_SIDE), knot + 1] = part
    return weights


def draw_bar(centre: Centre, draws: Draws) -> Area:
    """Draw a pole or a rail across the thing at a centre, from edge to edge of the picture."""
    is_upright, width = bool(draws.below(2)), draws.pick(_BAR_WIDTHS)
    start = centre[0 if is_upright else 1] + draws.between(-_BAR_OFFSET, _BAR_OFFSET) - width // 2
    across, along = slice(start, start + width), slice(None)
    return (along, across) if is_upright else (across, along)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Look of a thing: its style, whether mirrored, its width and height in 256ths, the tint of line art."""

    style: Style
    mirrored: bool
    width: int
    height: int
    ink: Colour
    paper: Colour | None
    photograph: Path | None = None
    crop: Crop = (256, 256, 0, 0)


def draw_look(kind: Kind, styles: Sequence[Style], draws: Draws, photographs: Photographs | None = None) -> Look:
    """Draw the look of a thing, in one of the available styles of its kind."""
    files = (photographs or {}).get(kind.code, ())
    squeeze, across = draws.pick(_SQUEEZES), draws.below(2)
    return Look(
        style=draws.pick(offered_styles(kind, styles, is_photographed=bool(files))),
        mirrored=bool(draws.below(2)),
        width=squeeze if across else 256,
        height=256 if across else squeeze,
        ink=draws.pick(_INKS),
        paper=draws.pick(_PAPERS),
        photograph=draws.pick(files) if files else None,
        crop=draw_crop(draws) if files else (256, 256, 0, 0),
    )


def coloured(sprite: Sprite, look: Look) -> Sprite:
    """Return a sprite in red, green, blue, alpha: unchanged, or tinted for line art."""
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
    """Draw the light of a picture: (3, 256), a lookup table per channel."""
    contrast, brightness = draws.between(*_CONTRAST), draws.between(*_BRIGHTNESS)
    lit = ((np.arange(256, dtype=np.int32) - 128) * contrast >> 8) + 128 + brightness
    gains = np.array([draws.between(*_TINT) for _ in range(3)], dtype=np.int32)
    tables: npt.NDArray[np.uint8] = np.clip(lit[None, :] * gains[:, None] >> 8, 0, 255).astype(np.uint8)
    return tables


Photographs = Mapping[str, Sequence[Path]]
"""Code of a kind -> its available photographs."""

Box = tuple[int, int, int, int]
Owners = npt.NDArray[np.int8]
"""(PICTURE_SIDE, PICTURE_SIDE): tag of the visible thing at each pixel, -1 for none."""

_FRACTION: Final = 16
_ONE: Final = 1 << _FRACTION
_WEIGHT_BITS: Final = 8
_VISIBLE: Final = 24
"""Minimum alpha of a pixel that counts for the box of a thing."""

_HIDES: Final = 128
"""Minimum alpha of a pixel that occludes another thing."""

_COSINES: Final = {0: 65536, 4: 65376, 8: 64898, 12: 64104, 16: 62997}
_SINES: Final = {0: 0, 4: 4572, 8: 9121, 12: 13626, 16: 18064}
"""Degrees -> cosine and sine times 2**16, rounded."""

_LEAST_SEEN: Final = (3, 4)
"""Minimum visible share of a thing's pixels under occlusion."""

_MOST_MOVED: Final = 10
"""Twice the maximum distance in pixels between the centres of a thing's visible part and of the complete thing."""

_BARRED: Final = 3
_BAR_TRIES: Final = 4
"""One picture in `_BARRED` has a bar, if one of `_BAR_TRIES` tries keeps all things recognisable."""

_BAR_SHADE: Final = (64, 144)
_JPEG_QUALITY: Final = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """Artwork ready for pasting: pixels, and the offset of their upper left corner from a thing's centre."""

    pixels: Sprite
    corner: tuple[int, int]

    def area(self, thing: Thing) -> Area:
        """Return the covered rows and columns of the picture."""
        left, top = thing.spot.centre[0] + self.corner[0], thing.spot.centre[1] + self.corner[1]
        height, width = self.pixels.shape[:2]
        return slice(top, top + height), slice(left, left + width)


def draw_scene(
    things: Sequence[Thing],
    styles: Sequence[Style],
    draws: Draws,
    photographs: Photographs | None = None,
    *,
    is_grey: bool = False,
) -> tuple[bytes, tuple[Box, ...]]:
    """Draw things, each in one of the styles; the draws determine everything else that varies.

    A thing may occlude a little of one other, and a bar a little of several. A box encloses a thing's visible pixels.

    Args:
        photographs: photographs of the photographed kinds; None if all are drawn.
        is_grey: whether the picture is grey and noisy.

    Returns:
        The JPEG file and, per thing, the box (x1, y1, x2, y2) in pixels, x2 and y2 exclusive.
    """
    picture = background(draws)
    looks = [draw_look(thing.kind, styles, draws, photographs) for thing in things]
    centres = [thing.spot.centre for thing in things]
    bars = [draw_bar(draws.pick(centres), draws) for _ in range(_BAR_TRIES)] if not draws.below(_BARRED) else []
    shade = [draws.between(*_BAR_SHADE) for _ in range(3)]
    lit = light(draws)

    stamps, order = _arrange(things, looks)
    owners = _owners(things, stamps, order)
    for tag in order:
        area, pixels = picture[stamps[tag].area(things[tag])], stamps[tag].pixels
        # (n + 128 + (n + 128) / 256) / 256, rounded down, is n / 255 to the nearest integer up to 255 * 255.
        through = area * (255 - pixels[..., 3:].astype(np.uint32)) + 128
        area[...] = pixels[..., :3] + ((through + (through >> 8)) >> 8)
    for bar in bars:
        behind = owners.copy()
        behind[bar] = -1
        if _shows(things, stamps, behind):
            picture[bar], owners = shade, behind
            break
    shown = np.stack([lit[channel][picture[..., channel]] for channel in range(3)], axis=2)
    if is_grey:
        shown = _grey(shown, draws)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), tuple(_extent(owners == tag) for tag in range(len(things)))


def _grey(picture: Picture, draws: Draws) -> Picture:
    """Return a grey picture with noise; the channel weights are those of ITU-R BT.601."""
    # The legacy generator's stream is frozen; that of the newer ones may change with NumPy.
    noise = np.random.RandomState(draws.below(1 << 32)).randint(-_NOISE, _NOISE + 1, picture.shape[:2])
    luma = (picture.astype(np.int64) @ np.array([299, 587, 114]) + 500) // 1000
    return np.repeat(np.clip(luma + noise, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


_NOISE: Final = 40
"""Maximum amplitude of the noise of a grey picture, in steps of a channel."""


def _arrange(things: Sequence[Thing], looks: Sequence[Look]) -> tuple[list[Stamp], range]:
    """Return the stamps of things and their drawing order, so that each can be recognised."""

    def stamps(smaller: int, tilts: bool) -> list[Stamp]:
        thing_stamps = []
        for thing, look in zip(things, looks, strict=True):
            size, tilt = thing.spot.size - smaller, thing.spot.tilt if tilts else 0
            thing_stamps.append(turned(coloured(_scaled(thing.kind, look, size), look), look, size, tilt))
        return thing_stamps

    tags, whole = range(len(things)), stamps(0, tilts=True)
    for order in (tags, tags[::-1]):
        if _shows(things, whole, _owners(things, whole, order)):
            return whole, order
    # If neither of two things can occlude the other, they are drawn upright and smaller, so that they do not touch.
    return stamps(OVERLAP, tilts=False), tags


def _owners(things: Sequence[Thing], stamps: Sequence[Stamp], order: Sequence[int]) -> Owners:
    owners = np.full((PICTURE_SIDE, PICTURE_SIDE), -1, dtype=np.int8)
    for tag in order:
        alpha, under = stamps[tag].pixels[..., 3], owners[stamps[tag].area(things[tag])]
        under[(alpha >= _HIDES) | ((alpha >= _VISIBLE) & (under < 0))] = tag
    return owners


def _shows(things: Sequence[Thing], stamps: Sequence[Stamp], owners: Owners) -> bool:
    """Return whether enough of each thing is visible, near its position, and on the planned side of all others."""
    part, whole = _LEAST_SEEN
    middles = []
    for tag, (thing, stamp) in enumerate(zip(things, stamps, strict=True)):
        alone, seen = stamp.pixels[..., 3] >= _VISIBLE, owners == tag
        if np.count_nonzero(seen) * whole < np.count_nonzero(alone) * part:
            return False
        rows, columns = stamp.area(thing)
        before, after = _extent(alone), _extent(seen)
        # Twice the centre, to stay with integers.
        moves = (after[axis] + after[axis + 2] - before[axis] - before[axis + 2] for axis in (0, 1))
        corner = (columns.start, rows.start)
        if any(abs(move - 2 * start) > _MOST_MOVED for move, start in zip(moves, corner, strict=True)):
            return False
        middles.append((after[0] + after[2], after[1] + after[3]))
    return all(
        planned in (None, leaning(middles[index], middles[other]))
        for index, first in enumerate(things)
        for other, second in enumerate(things)
        if index != other
        for planned in (relation(first.spot.centre, second.spot.centre),)
    )


def turned(sprite: Sprite, look: Look, size: int, tilt: int) -> Stamp:
    """Return a sprite of `size` pixels in the pose of a look, rotated clockwise by `tilt` degrees."""
    height, width = sprite.shape[:2]
    padded = np.zeros((height + 2, width + 2, 4), dtype=np.int32)
    padded[1:-1, 1:-1] = sprite[:, ::-1] if look.mirrored else sprite
    side = -(-size * 5 // 4) // 2 * 2
    steps = (2 * np.arange(side, dtype=np.int64) + 1 - side) * _ONE // 2
    cosine, sine = _COSINES[abs(tilt)], _SINES[abs(tilt)] * (1 if tilt >= 0 else -1)
    x, y = steps[None, :], steps[:, None]
    # Each pixel is sampled at its position before rotation and squeezing; y grows downwards.
    source_x = ((x * cosine - y * sine) >> _FRACTION) * 256 // look.width + (width + 1) * _ONE // 2
    source_y = ((x * sine + y * cosine) >> _FRACTION) * 256 // look.height + (height + 1) * _ONE // 2
    pixels = _bilinear(padded, source_x.astype(np.int32), source_y.astype(np.int32)).astype(np.uint8)
    x1, y1, x2, y2 = _extent(pixels[..., 3] > 0)
    return Stamp(pixels=np.ascontiguousarray(pixels[y1:y2, x1:x2]), corner=(x1 - side // 2, y1 - side // 2))


def _extent(seen: npt.NDArray[np.bool_]) -> Box:
    """Return the bounding box of the true pixels."""
    rows, columns = np.nonzero(seen.any(axis=1))[0], np.nonzero(seen.any(axis=0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _scaled(kind: Kind, look: Look, size: int) -> Sprite:
    if look.style == "photograph" and look.photograph is not None:
        return scaled(cropped(look.photograph, look.crop), size)
    return _scaled_artwork(kind, look.style, size)


@functools.lru_cache(maxsize=2048)
def _scaled_artwork(kind: Kind, style: Style, size: int) -> Sprite:
    return scaled(load_sprite(kind, style), size)


def scaled(sprite: Sprite, size: int) -> Sprite:
    """Scale a sprite by area averaging so that its longer side has `size` pixels."""
    height, width = sprite.shape[:2]
    longer = max(height, width)
    new_height, new_width = (max(1, side * size // longer) for side in (height, width))
    rows, columns = _overlaps(new_height, height), _overlaps(new_width, width)
    channels = np.moveaxis(sprite.astype(np.float64), 2, 0)
    sums = np.moveaxis(rows @ channels @ columns.T, 0, 2).astype(np.int64)
    means: Sprite = ((sums + height * width // 2) // (height * width)).astype(np.uint8)
    return means


def _overlaps(new: int, old: int) -> npt.NDArray[np.float64]:
    """Return integer overlaps (new, old) of the pixels of two rasters over one length; each row sums to `old`."""
    new_start, old_start = np.arange(new)[:, None] * old, np.arange(old)[None, :] * new
    overlap = np.minimum(new_start + old, old_start + new) - np.maximum(new_start, old_start)
    return overlap.clip(0).astype(np.float64)


def _bilinear(
    padded: npt.NDArray[np.int32], x: npt.NDArray[np.int32], y: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Sample at fixed-point positions; the outermost pixels of `padded` are transparent and represent the outside."""
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
