"""Named arrays in `.npz` files, read without unpickling; any damage to a file raises one error class."""

from __future__ import annotations

import hashlib
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

DAMAGE = (
    AttributeError,  # a member that is not an array
    EOFError,
    OSError,
    RuntimeError,  # an "encrypted" flag, or a zip feature that Python lacks
    ValueError,
    tokenize.TokenError,  # an array header that is not a literal
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions that numpy and zipfile raise on damaged or hostile archives, as found by fuzzing."""


class DamagedArchive(ValueError):
    """A file that is not an archive of plain arrays."""


def read_array_archive(
    file: Path | IO[bytes], *, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays of an `.npz` file.

    Raises:
        OSError: the file cannot be opened.
        DamagedArchive: the file is not an archive of plain arrays.
    """
    if isinstance(file, Path):
        # Opened here, because numpy does not close a file that it opened itself and found damaged.
        with file.open("rb") as handle:
            return read_array_archive(handle, wanted=wanted)
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if wanted(name)}
    except DAMAGE as error:
        raise DamagedArchive(f"not an archive of arrays: {error}") from None


def arrays_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the hexadecimal SHA-256 of named arrays: of their names, dtypes, shapes and values."""
    state = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        state.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()
