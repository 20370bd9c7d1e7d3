"""Arrays that are filed under pictures: a folder of `.npy` files.

They are found by the name of a picture's file, with or without extension, and with as many of its folders as they are
filed under.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.array_archives import DAMAGE
from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.extraction.imports.region_formats import FoundFeatures, claim

_DAMAGED = (*DAMAGE, KeyError, MemoryError, TypeError)
"""What NumPy raises for what it cannot read, forged sizes and kinds of numbers among it."""


class FiledArrays:
    """Arrays by the names that they are filed under, such as cats/0.

    Args:
        folder: that they lie in.
        units: the pictures; each is looked up before any array is read.

    Raises:
        DatasetError: a picture has none of its own.
    """

    def __init__(self, folder: Path, units: Iterable[ImageUnit]) -> None:
        self._folder = folder
        files = sorted(folder.rglob("*.npy"))
        self._files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
        self._pictures: dict[str, Path] = {}
        self._alike: dict[str, list[str]] = {}
        for name in self._files:
            self._alike.setdefault(name.rpartition("/")[2], []).append(name)
        for unit in units:
            self._name_of(unit)

    def features(self, unit: ImageUnit) -> FoundFeatures:
        """Read the features of a picture, rows (M, D) or one vector (D,).

        Raises:
            DatasetError: there are none, those of another picture have the same name, or they cannot be read.
        """
        return FoundFeatures(values=_read_values(self._files[self._name_of(unit)]))

    def _name_of(self, unit: ImageUnit) -> str:
        """Return the name of a picture's features, which no other picture may have."""
        name = self._find(unit.path)
        if name is None:
            why = f"picture {unit.path.name}"
            raise DatasetError("There are no features for a picture.", where=str(self._folder), why=why)
        claim(self._pictures, name, unit.path)
        return name

    def _find(self, picture: Path) -> str | None:
        """Return the name that a picture's features are filed under: the one with most of its folders."""
        parts = picture.parts[1:] if picture.is_absolute() else picture.parts
        for first in range(len(parts)):
            name = "/".join(parts[first:])
            for filed in (name, name.removesuffix(picture.suffix)):
                if filed in self._files:
                    return filed
        # Features may lie in folders that the pictures do not, as long as a file's name says whose they are.
        alike = self._alike.get(picture.name) or self._alike.get(picture.stem) or []
        if len(alike) > 1:
            what, why = "Several features go by a picture's name, and none by its folder.", " and ".join(alike[:2])
            advice = "file features as the pictures are: cats/0.npy for cats/0.png"
            raise DatasetError(what, where=str(picture), why=why, next_command=advice)
        return alike[0] if alike else None


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
        why = f"{values.dtype} of shape {values.shape}"
        raise DatasetError("Features must be numbers of shape (rows, width) or (width,).", where=str(path), why=why)
    with np.errstate(over="ignore"):
        features: npt.NDArray[np.float32] = values.astype(np.float32)
    if not np.isfinite(features).all():
        why = "some are NaN or infinite, or beyond the range of float32"
        advice = again("make them anew by the program that wrote them, then give the same command again")
        raise DatasetError("Features must be finite numbers.", where=str(path), why=why, next_command=advice)
    return features
