"""Features that people have already, taken into a cache: a detector's regions, and arrays filed under pictures.

Regions are read by `extraction/regions`. Arrays lie in an HDF5 file, or in a folder of `.npy` or `.pt` files. They
are found by the name of a picture's file, with or without extension, and with as many of its folders as they are
filed under. Two-dimensional arrays are token rows, and their mean is the global feature; others are global.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from advl_pipeline.cache.provenance import IMPORTED
from advl_pipeline.configuration import refuse_ineffective
from advl_pipeline.datasets.cards import JOIN, picture_splits
from advl_pipeline.datasets.records import Dataset, ImageUnit
from advl_pipeline.errors import DatasetError, again
from advl_pipeline.extraction.config import ImportConfig, ImportedExtraction, default_output, location_of
from advl_pipeline.extraction.given import require_source
from advl_pipeline.extraction.imported_tower import FoundFeatures, ImportedTower
from advl_pipeline.extraction.regions.registry import RegionFiles, are_regions, found_features
from advl_pipeline.extraction.run import ExtractResult, extract, store_of
from advl_pipeline.interruption import interruptible
from advl_pipeline.outputs import require_outputs
from advl_pipeline.teachers.interface import Teacher

_SUFFIXES = (".npy", ".pt")
_OF_REGIONS = ("ground_truth_regions", "region_naming", "region_split")


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
                next_command="file features as the pictures are: cats/0.npy for cats/0.png",
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


def _names(files: FeatureFolder | FeatureHdf5, units: Sequence[ImageUnit], where: str) -> dict[str, str]:
    """Return by unit the name that its features are filed under.

    Raises:
        DatasetError: a picture has none, or two pictures the same ones.
    """
    names: dict[str, str] = {}
    pictures: dict[str, Path] = {}
    for unit in units:
        name = files.find(unit.path)
        if name is None:
            raise DatasetError("There are no features for a picture.", where=where, why=f"picture {unit.path.name}")
        if (other := pictures.setdefault(name, unit.path)) != unit.path:
            raise DatasetError(
                "Two pictures have the same features, by their names.",
                where=f"{where}: {name}",
                why=f"{other} and {unit.path}",
                next_command="file features as the pictures are: cats/0.npy for cats/0.png",
            )
        names[unit.unit_id] = name
    return names


def run_import(config: ImportConfig) -> ExtractResult:
    """Write a cache from features that exist.

    Raises:
        ConfigError: there is nothing to import, or an option that the files do not need.
        DatasetError: a picture has no features, or they cannot be read safely.
    """
    from advl_pipeline.datasets.registry import open_splits

    output = config.output or default_output(IMPORTED + config.name, config.dataset, config.split)
    require_outputs(config, output=output)
    with interruptible("The import", kept="every committed shard is kept"):
        dataset = open_splits(config.dataset, split=config.split, data_root=config.data_root)
        return import_features(config, dataset)


def import_features(config: ImportConfig, dataset: Dataset) -> ExtractResult:
    """As `run_import`, with the dataset open; what is to be written is said before."""
    extraction = ImportedExtraction(
        **{name: getattr(config, name) for name in ("source", *_OF_REGIONS)},
        **{name: getattr(config, name) for name in ("dataset", "split", "data_root", "output")},
        teacher=IMPORTED + config.name,
        modality="image",
        confidence=False,
        num_workers=1,
    )
    with ExitStack() as stack:
        tower = open_tower(extraction, dataset.image_units(), stack)
        extraction = dataclasses.replace(
            extraction,
            image_tokens=("boxes" if tower.are_boxes or tower.has_regions else "grid")
            if tower.has_tokens
            else "none",
            dtype=config.dtype or ("float16" if tower.fits_float16 or not tower.has_regions else "float32"),
        )
        teacher = Teacher(name=extraction.teacher, image=tower)
        if config.dry_run or not store_of(extraction).list("records"):
            planned = extract(dataclasses.replace(extraction, dry_run=True), teacher, dataset)
            ((image,), free) = planned.estimates, planned.free_bytes or 0
            tqdm.write(
                f"{image.num_units:,} pictures, {image.num_token_rows:,} rows of {tower.global_dim} in "
                f"{extraction.dtype}: {image.num_bytes / 1e9:.3f} GB for {location_of(extraction)}, where "
                f"{free / 1e9:.1f} GB are free",
                file=sys.stderr,
            )
            if config.dry_run:
                return planned
        return extract(extraction, teacher, dataset)


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
    names = _names(arrays, units, where)
    return ImportedTower(lambda unit: FoundFeatures(values=arrays.read(names[unit.unit_id])), units, where=where)


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
