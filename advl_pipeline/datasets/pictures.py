"""Opening pictures with suspicion: every way in which a file is no picture becomes one sentence that names it."""

from __future__ import annotations

import errno
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.errors import DatasetError

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a damaged picture, depending on its format."""


def require_content(path: Path, name: str) -> None:
    """See that a plain file is there and not empty.

    Raises:
        Malformed: it is not.
    """
    try:
        status = path.stat()
    except OSError:
        raise Malformed(f"{name} is missing") from None
    # A pipe has no size either, and reading one may never end.
    if not stat.S_ISREG(status.st_mode):
        raise Malformed(f"{name} is no regular file")
    if not status.st_size:
        raise Malformed(f"{name} is empty")


def picture_size(path: Path, name: str) -> tuple[int, int]:
    """Return width and height from a picture's header; nothing is decoded.

    Raises:
        Malformed: missing, empty, not a picture, or more pixels than Pillow thinks safe (a decompression bomb).
    """
    with _opened(path, name) as image:
        return image.size


def decode_picture(path: Path, name: str) -> None:
    """Decode a picture completely.

    Raises:
        Malformed: as `picture_size`, or the file is cut off or damaged.
    """
    with _opened(path, name) as image:
        image.load()


def read_square(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Return a picture as (size, size, 3) RGB, squeezed to a square.

    Raises:
        DatasetError: the picture cannot be decoded.
    """
    return np.asarray(read_rgb(path).resize((size, size), Image.Resampling.BICUBIC))


def read_rgb(path: Path) -> Image.Image:
    """Return a picture in red, green and blue: transparent pixels over white, EXIF orientation not applied.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with regular_file(path) as content, Image.open(content) as file:
            _require_8_bits(file)
            file.load()
            if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
                rgba = file.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            return file.convert("RGB")
    except PICTURE_ERRORS as error:
        raise unreadable_picture(path, error) from None


def unreadable_picture(path: Path, error: Exception) -> DatasetError:
    """Return the error for a picture that was taken for sound and turns out not to be."""
    return DatasetError(
        "A picture cannot be read.",
        where=str(path),
        why=f"{type(error).__name__}: {error}",
        next_command="replace the file and give the command again; or leave such pictures out, in caches and runs "
        "made anew with --on-error skip",
    )


def regular_file(path: Path) -> BufferedReader:
    """Open a file to read; a pipe would wait for its other end, and a device need not end.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.open("rb")


def _require_8_bits(image: Image.Image) -> None:
    """Refuse grey of more bits, which Pillow clips where it should scale: what is light would all be white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"grey of more than 8 bits (mode {image.mode}); scale it to 8 bits first")


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    require_content(path, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with regular_file(path) as content, Image.open(content) as image:
                _require_8_bits(image)
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Malformed(f"{name} claims more pixels than a picture may have (decompression bomb)") from None
    except PICTURE_ERRORS as error:
        raise Malformed(f"{name} is not a readable picture: {error}") from None
