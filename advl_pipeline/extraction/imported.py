"""Features that people have already, taken into a cache: HDF5 files, or folders of `.npy` or `.pt` files.

A picture's features are found by the name of its file, with or without extension, and with as many of its folders as
features are filed under. Two-dimensional features are token rows, and their mean is the global feature;
one-dimensional features are global.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.provenance import IMPORTED
from advl_pipeline.configuration import build_config
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import (
    ConfigError,
    DatasetError,
    again,
)
from advl_pipeline.extraction.config import ExtractConfig, ImportConfig, default_output
from advl_pipeline.extraction.run import ExtractResult, extract
from advl_pipeline.interruption import interruptible
from advl_pipeline.outputs import require_outputs
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, Teacher

_SUFFIXES = (".npy", ".pt")


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


FeatureFiles = FeatureFolder | FeatureHdf5
"""Where features lie, by the name of the picture."""


class ImportedTower:
    """An `ImageTower` whose features are looked up instead of computed."""

    def __init__(self, files: FeatureFiles, units: Sequence[ImageUnit], *, where: str) -> None:
        self._files = files
        self._where = where
        self._rows: dict[str, int] = {}
        self._names = _names(files, units, where)
        state = hashlib.sha256()
        shapes: set[tuple[int, int]] = set()
        for unit in units:
            features = self._features(unit)
            self._rows[unit.unit_id] = len(features) if features.ndim == 2 else 0
            shapes.add((features.ndim, features.shape[-1]))
            state.update(unit.unit_id.encode() + np.ascontiguousarray(features, "<f4").tobytes())
        if len(shapes) != 1:
            raise DatasetError("Features differ in width or in kind.", where=where, why=str(sorted(shapes)))
        ((self._ndim, self.global_dim),) = shapes
        self.token_dim = self.global_dim
        self.are_boxes = self._ndim == 2 and all(self._rows[unit.unit_id] == len(unit.boxes_R4) for unit in units)
        self._digest = state.hexdigest()

    @property
    def has_tokens(self) -> bool:
        return self._ndim == 2

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "imported features",
            "content_digest": self._digest,
            "global": "mean of the rows" if self.has_tokens else "as given",
        }

    def num_tokens(self, unit: ImageUnit) -> int:
        return self._rows[unit.unit_id]

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        features = torch.from_numpy(np.atleast_2d(self._features(unit)))
        return PreparedUnit(inputs={"features": features}, num_tokens=self._rows[unit.unit_id])

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        rows = [unit.inputs["features"] for unit in units]
        return EncodedBatch(
            global_ND=torch.stack([row_MD.mean(dim=0) for row_MD in rows]),
            token_values=[row_MD[: unit.num_tokens] for row_MD, unit in zip(rows, units, strict=True)],
        )

    def _features(self, unit: ImageUnit) -> npt.NDArray[np.float32]:
        return self._files.read(self._names[unit.unit_id])


def _names(files: FeatureFiles, units: Sequence[ImageUnit], where: str) -> dict[str, str]:
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
        DatasetError: a picture has no features, or they cannot be read safely.
    """
    from advl_pipeline.datasets.registry import open_dataset

    require_outputs(config, output=_output_of(config))
    with interruptible("The import", kept="every committed shard is kept"):
        dataset = open_dataset(config.dataset, split=config.split, data_root=config.data_root)
        return import_features(config, dataset)


def import_features(config: ImportConfig, dataset: Dataset) -> ExtractResult:
    """As `run_import`, with the dataset open."""
    with ExitStack() as stack:
        if config.source.is_dir():
            files: FeatureFiles = FeatureFolder(config.source)
        elif config.source.is_file():
            files = FeatureHdf5(config.source, stack)
        else:
            raise ConfigError("There is nothing to import.", where=str(config.source))
        tower = ImportedTower(files, dataset.image_units(), where=str(config.source))
        tokens = ("boxes" if tower.are_boxes else "grid") if tower.has_tokens else "none"
        settings = {
            "teacher": IMPORTED + config.name,
            "dataset": config.dataset,
            "split": config.split,
            "output": _output_of(config),
            "modality": "image",
            "image_tokens": tokens,
            "dtype": config.dtype,
            "confidence": False,
            "num_workers": 1,
            "data_root": config.data_root,
        }
        extraction = build_config(ExtractConfig, settings)
        return extract(extraction, Teacher(name=extraction.teacher, image=tower), dataset)


def _output_of(config: ImportConfig) -> Path:
    return config.output or default_output(IMPORTED + config.name, config.dataset, config.split)


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
