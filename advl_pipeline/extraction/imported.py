"""Features that people have already, taken into a cache: a detector's regions, and arrays filed under pictures.

Regions are read by `extraction/regions.py`. Arrays lie in an HDF5 file, or in a folder of `.npy` or `.pt` files. They
are found by the name of a picture's file, with or without extension, and with as many of its folders as they are
filed under. Two-dimensional arrays are token rows, and their mean is the global feature; others are global.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from advl_pipeline.configuration import refuse_ineffective
from advl_pipeline.datasets.cards import JOIN, picture_splits
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import DatasetError, again
from advl_pipeline.extraction.config import ImportedExtraction
from advl_pipeline.extraction.given import require_source
from advl_pipeline.extraction.region_formats import FoundFeatures
from advl_pipeline.extraction.regions import RegionFiles, are_regions, found_features
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit

_SUFFIXES = (".npy", ".pt")

_HOW_TO_FILE = "file features as the pictures are: cats/0.npy for cats/0.png"

_OF_REGIONS = ("ground_truth_regions", "region_naming", "region_split")


def open_tower(config: ImportedExtraction, units: Sequence[ImageUnit], stack: ExitStack) -> ImportedTower:
    """Open the files that features are imported from, as the tower that gives the features of these pictures.

    Args:
        stack: closes the files.

    Raises:
        ConfigError: there is nothing to import, or an option that the files do not need.
        DatasetError: a picture has no features, or they cannot be read safely.
    """
    where = str(config.source)
    if not units:
        raise DatasetError("The split has no pictures.", where=f"{config.dataset}, split {config.split}")
    split = config.region_split or JOIN.join(picture_splits(config.dataset, config.split))
    splits = split.split(JOIN)
    if are_regions(config.source, splits[0]):
        files = partial(RegionFiles, splits=splits, naming=config.region_naming, first=units[0], stack=stack)
        own = config.ground_truth_regions
        detected = files(config.source, prefix="vcr_")
        ground_truth = None if own is None else files(own, prefix="vcr_gt_", ground_truth=True)
        return ImportedTower(partial(found_features, detected, ground_truth), units, where=where)
    why = "the source holds arrays that are filed under pictures, and no regions of a detector"
    refuse_ineffective({name: why for name in _OF_REGIONS if getattr(config, name) is not None})
    require_source(config)
    arrays = FeatureFolder(config.source) if config.source.is_dir() else FeatureHdf5(config.source, stack)
    names: dict[str, str] = {}
    pictures: dict[str, Path] = {}
    for unit in units:
        name = arrays.find(unit.path)
        if name is None:
            raise DatasetError("There are no features for a picture.", where=where, why=f"picture {unit.path.name}")
        if (other := pictures.setdefault(name, unit.path)) != unit.path:
            raise DatasetError(
                "Two pictures have the same features, by their names.",
                where=f"{where}: {name}",
                why=f"{other} and {unit.path}",
                next_command=_HOW_TO_FILE,
            )
        names[unit.unit_id] = name
    return ImportedTower(lambda unit: FoundFeatures(values=arrays.read(names[unit.unit_id])), units, where=where)


class ImportedTower:
    """An `ImageTower` over features that exist. All are read once before, for their digest.

    Args:
        read: finds the features of a picture; several threads may call it at once.
        units: pictures that there must be features of.
        where: the files, for errors.

    Raises:
        DatasetError: as `read` says, or pictures whose features are of several kinds.
    """

    def __init__(self, read: Callable[[ImageUnit], FoundFeatures], units: Sequence[ImageUnit], *, where: str) -> None:
        self._read = read
        self._rows: dict[str, int] = {}
        self.fits_float16 = True
        state = hashlib.sha256()
        kinds: dict[tuple[int, int, bool], ImageUnit] = {}
        for unit in tqdm(units, desc="reading features", unit="picture"):
            found = read(unit)
            self._rows[unit.unit_id] = len(found.values) if found.values.ndim == 2 else 0
            kinds.setdefault((found.values.ndim, found.values.shape[-1], found.whole_D is not None), unit)
            state.update(unit.unit_id.encode())
            for array in (found.values, *found.regions.values(), found.whole_D):
                if array is not None:
                    state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            if self.fits_float16:
                with np.errstate(over="ignore"):
                    self.fits_float16 = bool((found.values.astype(np.float16) == found.values).all())
        if len(kinds) != 1:
            shapes = {2: "rows", 1: "one vector"}
            beside = {True: " and the whole picture's", False: ""}
            told = [
                f"{shapes[ndim]} of {width}{beside[has_whole]} for {unit.path.name}"
                for (ndim, width, has_whole), unit in kinds.items()
            ]
            raise DatasetError("Features differ in width or in kind.", where=where, why=", ".join(told[:2]))
        (((self._ndim, self.global_dim, self._has_whole), _),) = kinds.items()
        self.token_dim = self.global_dim
        self.has_regions = bool(found.regions)
        self.are_boxes = self._ndim == 2 and all(self._rows[unit.unit_id] == len(unit.boxes_R4) for unit in units)
        self._digest = state.hexdigest()

    @property
    def has_tokens(self) -> bool:
        return self._ndim == 2

    @property
    def tokens(self) -> Literal["boxes", "grid", "none"]:
        """What token features there are: one row per box, a grid, or none."""
        if not self.has_tokens:
            return "none"
        return "boxes" if self.are_boxes or self.has_regions else "grid"

    def describe(self) -> dict[str, Any]:
        is_mean = self.has_tokens and not self._has_whole
        return {
            "kind": "imported regions" if self.has_regions else "imported features",
            "content_digest": self._digest,
            "global": "mean of the rows" if is_mean else "as given",
        }

    def num_tokens(self, unit: ImageUnit) -> int:
        return self._rows[unit.unit_id]

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        found = self._read(unit)
        rows_MD = torch.from_numpy(np.atleast_2d(found.values))
        whole_D = rows_MD.mean(dim=0) if found.whole_D is None else torch.from_numpy(found.whole_D)
        size = torch.tensor([unit.width, unit.height], dtype=torch.float32)
        return PreparedUnit(
            inputs={"rows": rows_MD, "whole": whole_D, "size": size},
            num_tokens=self._rows[unit.unit_id],
            regions=found.regions,
        )

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        size_N2 = torch.stack([unit.inputs["size"] for unit in units])
        return EncodedBatch(
            global_ND=torch.stack([unit.inputs["whole"] for unit in units]),
            token_values=[unit.inputs["rows"][: unit.num_tokens] for unit in units],
            stats={"width": size_N2[:, 0], "height": size_N2[:, 1]} if self.has_regions else {},
        )


def _names_of(picture: Path) -> Iterator[str]:
    """Yield the names that a picture may be filed under, those with most of its folders first."""
    parts = picture.parts[1:] if picture.is_absolute() else picture.parts
    for first in range(len(parts)):
        name = "/".join(parts[first:])
        yield name
        yield name.removesuffix(picture.suffix)


class FeatureFolder:
    """One `.npy` or `.pt` file per picture. PyTorch files are read as plain tensors, never unpickled."""

    def __init__(self, folder: Path) -> None:
        found = [path for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES]
        if not found:
            raise DatasetError("The folder holds no .npy or .pt files.", where=str(folder))
        self._files: dict[str, Path] = {}
        self._alike: dict[str, list[str]] = {}
        for path in found:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in self._files:
                raise DatasetError("Two feature files have one name.", where=str(self._files[name]), why=str(path))
            self._files[name] = path
            self._alike.setdefault(path.stem, []).append(name)

    def find(self, picture: Path) -> str | None:
        """Return the name that a picture's features are filed under, or None when there are none."""
        for name in _names_of(picture):
            if name in self._files:
                return name
        # Features may lie in folders that the pictures do not, as long as a file's name says whose they are.
        alike = self._alike.get(picture.name) or self._alike.get(picture.stem) or []
        if len(alike) > 1:
            raise DatasetError(
                "Several feature files go by a picture's name, and none by its folder.",
                where=str(picture),
                why=f"{alike[0]} and {alike[1]}",
                next_command=_HOW_TO_FILE,
            )
        return alike[0] if alike else None

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return the features of that name, (M, D) or (D,)."""
        path = self._files[name]
        try:
            if path.suffix == ".npy":
                return _checked(np.load(path, allow_pickle=False), str(path))
            tensor = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise DatasetError(
                "A feature file cannot be read.", where=str(path), why=str(error).split("\n")[0]
            ) from None
        if not isinstance(tensor, torch.Tensor):
            raise DatasetError("A feature file does not hold one tensor.", where=str(path))
        return _checked(tensor.float().numpy(), str(path))


class FeatureHdf5:
    """One HDF5 file: a data set per picture, or a group per picture with a data set `features`."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        import h5py

        self._path = path
        try:
            self._file = stack.enter_context(h5py.File(path, "r"))
        except OSError as error:
            raise DatasetError("The file is not readable HDF5.", where=str(path), why=str(error)) from None

    def find(self, picture: Path) -> str | None:
        return next((name for name in _names_of(picture) if name in self._file), None)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        item = self._file[name]
        item = item["features"] if hasattr(item, "keys") and "features" in item else item
        if not hasattr(item, "shape"):
            raise DatasetError("A group has no data set `features`.", where=f"{self._path}:{name}")
        return _checked(item[()], f"{self._path}:{name}")


def _checked(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim not in (1, 2) or values.shape[-1] == 0 or values.dtype.kind not in "fiu":
        raise DatasetError(
            "Features must be numbers of shape (rows, width) or (width,).",
            where=where,
            why=f"{values.dtype} of shape {values.shape}",
        )
    with np.errstate(over="ignore"):
        features = values.astype(np.float32)
    if not np.isfinite(features).all():
        raise DatasetError(
            "Features must be finite numbers.",
            where=where,
            why="some are NaN or infinite, or beyond the range of float32",
            next_command=again("make them anew by the program that wrote them, then give the same command again"),
        )
    return features
