"""Named arrays in `.npz` files, read without unpickling; whatever is wrong with a file comes out as one error."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

DAMAGE = (
    AttributeError,  # a member that is no array
    EOFError,
    OSError,
    RuntimeError,  # a flag says "encrypted", or a feature of zip that Python lacks
    ValueError,
    tokenize.TokenError,  # a header of an array that is no literal
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise on damaged or hostile archives, as fuzzing found."""


class DamagedArchive(ValueError):
    """A file that is not an archive of plain arrays."""


def read_array_archive(
    file: Path | IO[bytes], *, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an `.npz` file whose names are wanted.

    Raises:
        OSError: the file cannot be opened.
        DamagedArchive: not an archive of plain arrays.
    """
    if isinstance(file, Path):
        # Opened here, because numpy leaves a file open that it opened itself and then found damaged.
        with file.open("rb") as handle:
            return read_array_archive(handle, wanted=wanted)
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if wanted(name)}
    except DAMAGE as error:
        raise DamagedArchive(f"not an archive of arrays: {error}") from None
