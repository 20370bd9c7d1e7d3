"""Arrays that are filed under pictures: an HDF5 file, or a folder of `.npy` files.

They are found by the name of a picture's file, with or without extension, and with as many of its folders as they are
filed under.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.array_archives import DAMAGE
from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.extraction.imports.region_formats import Entry, FoundFeatures, by_name

_HOW_TO_FILE = "file features as the pictures are: cats/0.npy for cats/0.png"

_DAMAGED = (*DAMAGE, KeyError, MemoryError, TypeError)
"""What NumPy and h5py raise for what they cannot read, forged sizes and kinds of numbers among it."""


class FiledArrays:
    """Arrays by the names that they are filed under, such as cats/0.

    Args:
        source: the file or folder that they lie in, for errors.
        entries: name -> where the array lies; several names may be of one.
        units: the pictures; each is looked up before any array is read.

    Raises:
        DatasetError: two arrays have one name, or a picture has none of its own.
    """

    def __init__(self, source: Path, entries: Iterable[tuple[str, Entry]], units: Iterable[ImageUnit]) -> None:
        self._source = source
        self._entries = by_name(entries)
        self._pictures: dict[str, Path] = {}
        alike: dict[str, dict[str, str]] = {}
        for name, entry in self._entries.items():
            alike.setdefault(name.rpartition("/")[2], {}).setdefault(entry.where, name)
        self._alike = {last: [*names.values()] for last, names in alike.items()}
        for unit in units:
            self._name_of(unit)

    def features(self, unit: ImageUnit) -> FoundFeatures:
        """Read the features of a picture, rows (M, D) or one vector (D,).

        Raises:
            DatasetError: there are none, those of another picture have the same name, or they cannot be read.
        """
        return FoundFeatures(values=_read_values(self._entries[self._name_of(unit)]))

    def _name_of(self, unit: ImageUnit) -> str:
        """Return the name of a picture's features, which no other picture may have."""
        name = self._find(unit.path)
        if name is None:
            why = f"picture {unit.path.name}"
            raise DatasetError("There are no features for a picture.", where=str(self._source), why=why)
        if (other := self._pictures.setdefault(name, unit.path)) != unit.path:
            raise DatasetError(
                "Two pictures have the same features, by their names.",
                where=f"{self._source}: {name}",
                why=f"{other} and {unit.path}",
                next_command=_HOW_TO_FILE,
            )
        return name

    def _find(self, picture: Path) -> str | None:
        """Return the name that a picture's features are filed under: the one with most of its folders."""
        parts = picture.parts[1:] if picture.is_absolute() else picture.parts
        for first in range(len(parts)):
            name = "/".join(parts[first:])
            for filed in (name, name.removesuffix(picture.suffix)):
                if filed in self._entries:
                    return filed
        # Features may lie in folders that the pictures do not, as long as a file's name says whose they are.
        alike = self._alike.get(picture.name) or self._alike.get(picture.stem) or []
        if len(alike) > 1:
            raise DatasetError(
                "Several features go by a picture's name, and none by its folder.",
                where=str(picture),
                why=f"{alike[0]} and {alike[1]}",
                next_command=_HOW_TO_FILE,
            )
        return alike[0] if alike else None


def _read_values(entry: Entry) -> npt.NDArray[np.float32]:
    try:
        values = entry.read()["features"]
    except _DAMAGED as error:
        raise DatasetError("Features cannot be read.", where=entry.where, why=str(error).split("\n")[0]) from None
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim not in (1, 2) or values.shape[-1] == 0 or values.dtype.kind not in "fiu":
        raise DatasetError(
            "Features must be numbers of shape (rows, width) or (width,).",
            where=entry.where,
            why=f"{values.dtype} of shape {values.shape}",
        )
    with np.errstate(over="ignore"):
        features = values.astype(np.float32)
    if not np.isfinite(features).all():
        raise DatasetError(
            "Features must be finite numbers.",
            where=entry.where,
            why="some are NaN or infinite, or beyond the range of float32",
            next_command=again("make them anew by the program that wrote them, then give the same command again"),
        )
    return features


def arrays_of_folder(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Yield one `.npy` file per picture."""
    for path in sorted(folder.rglob("*.npy")):
        yield path.relative_to(folder).with_suffix("").as_posix(), Entry(str(path), partial(_read_array, path))


def _read_array(path: Path) -> dict[str, npt.NDArray[Any]]:
    values = np.load(path, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise ValueError("it does not hold one array")
    return {"features": values}


def arrays_of_hdf5(path: Path, stack: ExitStack) -> Iterator[tuple[str, Entry]]:
    """Yield the arrays of an HDF5 file: a data set per picture, or a group per picture with a data set `features`.

    Links are not followed, be they within the file or to another.
    """
    import h5py

    def read(place: str) -> dict[str, npt.NDArray[Any]]:
        # A data set that stays open keeps its chunks in memory.
        return {"features": np.asarray(file[place][()])}

    try:
        file: Any = stack.enter_context(h5py.File(path, "r"))
        places: list[str] = []
        file.visititems(lambda place, item: places.append(place) if isinstance(item, h5py.Dataset) else None)
        for place in places:
            yield place.removesuffix("/features"), Entry(f"{path}:/{place}", partial(read, place))
    except _DAMAGED as error:
        raise DatasetError("The file is not readable HDF5.", where=str(path), why=str(error)) from None
