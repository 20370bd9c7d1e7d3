"""Defensive opening of pictures: every failure becomes one message that names the file."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from advl_pipeline.base.locations import regular_file
from advl_pipeline.datasets.problems import Malformed, unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Decoded formats; of an animation only the first frame. Pillow's other decoders never run: some start programs."""

MAX_SIDE = 1 << 15
"""Longest side in pixels. Pictures with more pixels than Pillow considers safe are refused too."""

MAX_RATIO = 200
"""Largest ratio of the long side to the short one. Models scale the short side, and the long one would exhaust
memory."""

_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning)
"""Errors that Pillow raises for damaged pictures, depending on the format."""

_HEAD_BYTES = 32


def require_content(path: Path, name: str) -> None:
    """Require a regular file that is not empty.

    Raises:
        Malformed: the file is missing, empty or not regular.
    """
    try:
        status = path.stat()
    except OSError:
        raise Malformed(f"{name} is missing") from None
    # A pipe has no size, and reading one may never end.
    if not stat.S_ISREG(status.st_mode):
        raise Malformed(f"{name} is no regular file")
    if not status.st_size:
        raise Malformed(f"{name} is empty")


def read_size(path: Path, name: str) -> tuple[int, int]:
    """Return width and height from a picture's header without decoding it.

    Raises:
        Malformed: the file is missing, empty, not in one of `FORMATS`, or too large or too narrow to decode.
    """
    with _opened(path, name) as image:
        return image.size


def decode_picture(path: Path, name: str) -> bool:
    """Decode a picture, or the first frame of an animation; return whether it is an animation.

    Raises:
        Malformed: as `read_size`, or the file is truncated or damaged.
    """
    with _opened(path, name) as image:
        image.load()
        # JPEG files from phones often contain a preview after the picture (MPO).
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def as_file(picture: bytes | bytearray | Image.Image) -> bytes:
    """Return the file bytes of a picture in memory; a Pillow image becomes PNG."""
    if not isinstance(picture, Image.Image):
        return bytes(picture)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def read_square(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Return a picture as (size, size, 3) RGB, resized to a square without keeping the aspect ratio.

    Raises:
        DatasetError: the picture cannot be decoded.
    """
    return np.asarray(read_rgb(path).resize((size, size), Image.Resampling.BICUBIC))


def read_rgb(path: Path) -> Image.Image:
    """Return a picture in RGB, with transparent pixels over white and without applying EXIF orientation.

    Raises:
        DatasetError: the picture cannot be read.
    """
    try:
        with _opened(path, path.name) as file:
            file.load()
            if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
                rgba = file.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            return file.convert("RGB")
    except Malformed as error:
        advice = "replace the file; or leave such pictures out: make caches and runs with --on-error skip"
        raise unreadable(path, error, what="A picture", next_command=advice) from None


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    """Open a picture after checking its header; the only place that passes a file to a decoder."""
    require_content(path, name)
    try:
        with warnings.catch_warnings(), regular_file(path) as content:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            head = content.read(_HEAD_BYTES)
            content.seek(0)
            with Image.open(content, formats=FORMATS) as image:
                _require_usual_form(image)
                yield image
    except UnidentifiedImageError:
        raise Malformed(f"{name} is not a readable picture: {_unread_format(head)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Malformed(f"{name} claims more pixels than a picture may have (decompression bomb)") from None
    except _ERRORS as error:
        raise Malformed(f"{name} is not a readable picture: {error}") from None


def _require_usual_form(image: Image.Image) -> None:
    """Refuse pictures that would decode wrongly or exhaust memory."""
    short, long = sorted(image.size)
    if long > MAX_SIDE or long > MAX_RATIO * short:
        sides = f"{image.width} x {image.height} pixels"
        raise ValueError(f"it has {sides}; at most {MAX_SIDE:,} a side and {MAX_RATIO} to 1 are read")
    # Warning filters are global to the process: another thread may have removed ours.
    if Image.MAX_IMAGE_PIXELS is not None and short * long > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    # Pillow clips grey values of more than 8 bits instead of scaling them: light areas would all be white.
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"grey of more than 8 bits (mode {image.mode}); scale it to 8 bits first")


def _unread_format(head: bytes) -> str:
    """Return the format of a file by its first bytes, and the supported formats."""
    Image.init()
    accepts = ((name, accept) for name, (_, accept) in Image.OPEN.items() if accept is not None)
    # Some checks read a length field, and the file may be shorter than that.
    head = head.ljust(_HEAD_BYTES, b"\0")
    known = next((name for name, accept in accepts if name not in FORMATS and accept(head)), "")
    return (f"it is {known}; " if known else "") + f"{', '.join(FORMATS)} are read"
