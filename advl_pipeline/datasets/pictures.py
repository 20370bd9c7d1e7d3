"""Opening pictures with suspicion: every way in which a file is no picture becomes one sentence that names it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from advl_pipeline.datasets.problems import Malformed


def require_content(path: Path, name: str) -> None:
    """See that a file is there and not empty.

    Raises:
        Malformed: it is not.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise Malformed(f"{name} is missing") from None
    if not size:
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


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    require_content(path, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Malformed(f"{name} claims more pixels than a picture may have (decompression bomb)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow raises each of these for one damaged format or another.
        raise Malformed(f"{name} is not a readable picture: {error}") from None
