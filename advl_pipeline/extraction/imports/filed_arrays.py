"""Arrays named after pictures: a folder of `.npy` files.

An array is found by the name of a picture's file, with or without extension, preceded by the longest match of its
folders.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.array_archives import DAMAGE
from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.extraction.imports.regions import FoundFeatures, claim

_DAMAGED = (*DAMAGE, KeyError, MemoryError, TypeError)
"""Errors of NumPy for unreadable files, including forged sizes and dtypes."""


def filed_arrays(folder: Path, units: Iterable[ImageUnit]) -> Callable[[ImageUnit], FoundFeatures]:
    """Find the arrays of pictures; return a function that reads the array of a picture, (M, D) or (D,).

    Args:
        folder: the folder of the arrays.
        units: the pictures; each is looked up before any array is read.

    Raises:
        DatasetError: a picture has no array of its own. The function raises it for an unreadable array.
    """
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.npy"))}
    alike: dict[str, list[str]] = {}
    for name in files:
        alike.setdefault(name.rpartition("/")[2], []).append(name)
    pictures: dict[str, Path] = {}
    file_of: dict[Path, Path] = {}
    for unit in units:
        filed = _filed_name(unit.path, files, alike)
        if filed is None:
            raise DatasetError(
                "There are no features for a picture.", where=str(folder), why=f"picture {unit.path.name}"
            )
        claim(pictures, filed, unit.path)
        file_of[unit.path] = files[filed]
    return lambda unit: FoundFeatures(values=_read_values(file_of[unit.path]))


def _filed_name(picture: Path, files: Collection[str], alike: Mapping[str, Sequence[str]]) -> str | None:
    """Return the name of a picture's array: the one that matches most of its folders."""
    parts = picture.parts[1:] if picture.is_absolute() else picture.parts
    for first in range(len(parts)):
        name = "/".join(parts[first:])
        for filed in (name, name.removesuffix(picture.suffix)):
            if filed in files:
                return filed
    # Features may be in other folders than the pictures if their file names are unique.
    candidates = alike.get(picture.name) or alike.get(picture.stem) or []
    if len(candidates) > 1:
        raise DatasetError(
            "Several files of features have this picture's name, and none is in its folder.",
            where=str(picture),
            why=" and ".join(candidates[:2]),
            next_command="file features as the pictures are: cats/0.npy for cats/0.png",
        )
    return candidates[0] if candidates else None


def _read_values(path: Path) -> npt.NDArray[np.float32]:
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("it does not hold one array")
    except _DAMAGED as error:
        raise DatasetError("Features cannot be read.", where=str(path), why=str(error).split("\n")[0]) from None
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim not in (1, 2) or values.shape[-1] == 0 or values.dtype.kind not in "fiu":
        raise DatasetError(
            "Features must be numbers of shape (rows, width) or (width,).",
            where=str(path),
            why=f"{values.dtype} of shape {values.shape}",
        )
    with np.errstate(over="ignore"):
        features: npt.NDArray[np.float32] = values.astype(np.float32)
    if not np.isfinite(features).all():
        raise DatasetError(
            "Features must be finite numbers.",
            where=str(path),
            why="some are NaN or infinite, or beyond the range of float32",
            next_command=again("make them again with the program that wrote them, then run the same command again"),
        )
    return features
