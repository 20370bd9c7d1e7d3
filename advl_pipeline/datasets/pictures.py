"""Defensive opening of pictures: every failure becomes one message that names the file.

A file is read once. Its digest, its size and its pixels all come from these bytes, since another program may replace
the file at any time.
"""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.locations import regular_file, status_of
from advl_pipeline.datasets.problems import Malformed, replaced, unreadable
from advl_pipeline.datasets.records import ImageUnit, image_unit_id

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

MAX_BYTES = 1 << 30
"""Longest file. Several are in memory at once."""

_HEAD_BYTES = 32


def require_content(path: Path, name: str) -> None:
    """Require a regular file that is not empty.

    Raises:
        Malformed: the file is missing, empty or not regular.
    """
    try:
        status = status_of(path)
    except OSError:
        raise Malformed(f"{name} is missing") from None
    # A pipe has no size, and reading one may never end.
    if not stat.S_ISREG(status.st_mode):
        raise Malformed(f"{name} is no regular file")
    if not status.st_size:
        raise Malformed(f"{name} is empty")


def read_file(path: Path, name: str) -> bytes:
    """Return the bytes of a picture's file.

    Raises:
        Malformed: the file is missing, empty, not regular, too long, or cannot be read.
    """
    try:
        with regular_file(path) as file:
            if status_of(path).st_size > MAX_BYTES:
                raise Malformed(f"{name} is longer than {MAX_BYTES:,} bytes")
            content = file.read()
    except FileNotFoundError:
        raise Malformed(f"{name} is missing") from None
    except OSError as error:
        raise Malformed(f"{name} cannot be read: {error.strerror}") from None
    if not content:
        raise Malformed(f"{name} is empty")
    return content


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """Return width and height from a picture's header without decoding it.

    Args:
        content: the bytes of its file.
        name: the file's name for the message.

    Raises:
        Malformed: the bytes are not in one of `FORMATS`, or the picture is too large or too narrow to decode.
    """
    with _opened(content, name) as image:
        return image.size


def decode_picture(content: bytes, name: str) -> bool:
    """Decode a picture, or the first frame of an animation; return whether it is an animation.

    Raises:
        Malformed: as `size_of`, or the file is truncated or damaged.
    """
    with _opened(content, name) as image:
        image.load()
        # JPEG files from phones often contain a preview after the picture (MPO).
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def unit_of(path: Path, name: str, boxes: Sequence[Sequence[float]] = ()) -> ImageUnit:
    """Return the unit of a picture that no dataset has indexed; raises `Malformed` as `read_file` and `size_of`."""
    content = read_file(path, name)
    width, height = size_of(content, name)
    digest = hashlib.sha256(content).digest()
    boxes_R4 = np.asarray(boxes, np.float32).reshape(-1, 4)
    return ImageUnit(
        unit_id=image_unit_id(digest, boxes_R4),
        path=path,
        file_digest=digest,
        width=width,
        height=height,
        boxes_R4=boxes_R4,
    )


def picture_unit(path: str | Path, boxes: Sequence[Sequence[float]] = ()) -> ImageUnit:
    """Return the unit of a picture file: its id, and its size.

    Args:
        path: the file.
        boxes: as for `picture_unit_id`.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        return unit_of(Path(path), str(path), boxes)
    except Malformed as error:
        raise unreadable(path, error, what="The picture", next_command="give another picture") from None


def as_file(picture: bytes | bytearray | Image.Image) -> bytes:
    """Return the file bytes of a picture in memory; a Pillow image becomes PNG."""
    if not isinstance(picture, Image.Image):
        return bytes(picture)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def read_square(unit: ImageUnit, size: int) -> npt.NDArray[np.uint8]:
    """Return a picture as (size, size, 3) RGB, resized to a square without keeping the aspect ratio.

    Raises:
        DatasetError: as `read_picture`.
    """
    return np.asarray(read_picture(unit).resize((size, size), Image.Resampling.BICUBIC))


def read_picture(unit: ImageUnit) -> Image.Image:
    """Return the pixels of a unit's picture as `read_rgb` does.

    Raises:
        FileReplaced: the file no longer has the bytes that the unit was made of.
        DatasetError: the picture cannot be read, or its size differs from the unit's.
    """
    try:
        content = read_file(unit.path, unit.path.name)
        if hashlib.sha256(content).digest() != unit.file_digest:
            raise replaced(unit.path)
        picture = _rgb(content, unit.path.name)
    except Malformed as error:
        raise _unreadable(unit.path, error) from None
    if picture.size != (unit.width, unit.height):
        raise DatasetError(
            "A picture does not have the size that its dataset states, so its boxes cannot be trusted.",
            where=str(unit.path),
            why=f"stated {unit.width} x {unit.height} pixels, found {picture.width} x {picture.height}",
        )
    return picture


def read_rgb(path: Path) -> Image.Image:
    """Return a picture in RGB, with transparent pixels over white and without applying EXIF orientation.

    Raises:
        DatasetError: the picture cannot be read.
    """
    try:
        return _rgb(read_file(path, path.name), path.name)
    except Malformed as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Malformed) -> DatasetError:
    return unreadable(
        path,
        error,
        what="A picture",
        next_command="replace the file; or leave such pictures out: make caches and runs with --on-error skip",
    )


def _rgb(content: bytes, name: str) -> Image.Image:
    with _opened(content, name) as file:
        file.load()
        if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
            rgba = file.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return file.convert("RGB")


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """Open a picture after checking its header; the only place that passes bytes to a decoder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _require_usual_form(image)
                yield image
    except UnidentifiedImageError:
        raise Malformed(f"{name} is not a readable picture: {_unread_format(content[:_HEAD_BYTES])}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Malformed(f"{name} claims more pixels than a picture may have (decompression bomb)") from None
    except _ERRORS as error:
        raise Malformed(f"{name} is not a readable picture: {error}") from None


def _require_usual_form(image: Image.Image) -> None:
    """Refuse pictures that would decode wrongly or exhaust memory."""
    short, long = sorted(image.size)
    if long > MAX_SIDE or long > MAX_RATIO * short:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels; at most {MAX_SIDE:,} a side and {MAX_RATIO} to 1 are read"
        )
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
