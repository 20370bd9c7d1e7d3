"""Open a detector's region features by what they are, and ask them for the pictures of a dataset.

Shapes: R regions of a picture, F feature width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.extraction.imported_tower import FoundFeatures
from advl_pipeline.extraction.regions.interface import NAMINGS, Naming, RegionFeatures, RegionReader, name_of
from advl_pipeline.extraction.regions.per_picture import PerPictureRegions
from advl_pipeline.extraction.regions.tsv import TsvRegions
from advl_pipeline.packages import install_extra

SPLIT = "{split}"
"""Stands in a path for the split that the pictures are filed under."""


class PictureRegions:
    """Regions of the pictures of a dataset.

    Args:
        vcr_prefix: see `interface.name_of`.
        ground_truth: the file holds features of the dataset's own boxes, row by row.
    """

    def __init__(
        self, reader: RegionReader, *, naming: Naming, vcr_prefix: str = "", ground_truth: bool = False
    ) -> None:
        self.reader = reader
        self._naming: Naming = naming
        self._vcr_prefix = vcr_prefix
        self._ground_truth = ground_truth
        self._pictures: dict[str, Path] = {}

    def __contains__(self, unit: ImageUnit) -> bool:
        return self._name_of(unit) in self.reader

    def regions(self, unit: ImageUnit) -> RegionFeatures:
        """Return the regions of a picture.

        Raises:
            DatasetError: there are none, they are damaged or for another size, or ground-truth rows are not as many
                as the picture's boxes.
        """
        name = self._name_of(unit)
        found = self.reader.read(name, width=unit.width, height=unit.height)
        if not self._ground_truth:
            return found
        if len(found.boxes_R4) != len(unit.boxes_R4):
            raise DatasetError(
                "Features of ground-truth boxes do not fit the dataset's boxes.",
                where=name,
                why=f"{len(found.boxes_R4)} regions, the picture has {len(unit.boxes_R4)} boxes",
            )
        return dataclasses.replace(found, box_index_R=np.arange(len(found.boxes_R4), dtype=np.int64))

    def _name_of(self, unit: ImageUnit) -> str:
        name = name_of(unit.path, self._naming, vcr_prefix=self._vcr_prefix)
        if (other := self._pictures.setdefault(name, unit.path)) != unit.path:
            raise DatasetError(
                "Two pictures go by one name in region features.",
                where=name,
                why=f"{other} and {unit.path}",
                next_command="give the pictures names of their own, in the region features too",
            )
        return name


class RegionFiles:
    """Files of regions, one or one per split of the pictures.

    Args:
        path: `{split}` in it stands for each split.
        prefix: of UNITER's names of VCR's pictures, before the split.
        splits: that the pictures are filed under, such as ["train2014", "val2014"].
        naming: how the files name pictures; None for the first way by which `first` is found.
        first: a picture.
        stack: closes the files.
        ground_truth: they hold features of the dataset's own boxes.

    Raises:
        DatasetError: no such files, or `first` is not found.
    """

    def __init__(
        self,
        path: Path,
        *,
        prefix: str,
        splits: Sequence[str],
        naming: Naming | None,
        first: ImageUnit,
        stack: ExitStack,
        ground_truth: bool = False,
    ) -> None:
        places = {split: Path(str(path).replace(SPLIT, split)) for split in splits}
        readers = {place: open_regions(place, stack) for place in dict.fromkeys(places.values())}

        def named(by: Naming) -> list[PictureRegions]:
            return [
                PictureRegions(readers[place], naming=by, vcr_prefix=f"{prefix}{split}_", ground_truth=ground_truth)
                for split, place in places.items()
            ]

        found = naming or next((one for one in NAMINGS if _finds(named(one), first)), None)
        if found is None:
            raise DatasetError(
                "A picture has no region features.",
                where=str(path),
                why=f"{first.path.name} is not found in any way that files name pictures: {', '.join(NAMINGS)}",
            )
        self._files = named(found)

    def regions(self, unit: ImageUnit) -> RegionFeatures:
        """Read a picture from the file that holds it; where none does, the first one says what it misses."""
        files = self._files
        return next((file for file in files if len(files) == 1 or unit in file), files[0]).regions(unit)


def _finds(files: Sequence[PictureRegions], unit: ImageUnit) -> bool:
    try:
        return any(unit in file for file in files)
    except ConfigError:
        return False  # The picture's name does not fit this way of naming.


def found_features(detected: RegionFiles, ground_truth: RegionFiles | None, unit: ImageUnit) -> FoundFeatures:
    """Return a picture's regions as a cache stores them: of the dataset's own boxes first, as UNITER joins them.

    Raises:
        DatasetError: as the readers say, or the picture has no region at all.
    """
    found = detected.regions(unit)
    if ground_truth is not None:
        found = join_regions(ground_truth.regions(unit), found)
    if not len(found.features_RF):
        raise DatasetError("A picture has no region features.", where=str(unit.path), why="its entry has no region")
    size = np.array([found.width, found.height] * 2, dtype=np.float32)
    no_confidence = np.full(len(found.features_RF), -1, np.float32)
    return FoundFeatures(
        values=found.features_RF,
        regions={
            "boxes": np.concatenate([found.boxes_R4 / size, found.sides()], axis=1).astype(np.float32),
            "box_index": found.box_index_R.astype(np.int32),
            "confidence": no_confidence if found.confidence_R is None else found.confidence_R,
        },
        whole_D=found.whole_F,
    )


def join_regions(first: RegionFeatures, second: RegionFeatures) -> RegionFeatures:
    """Return the regions of both, as UNITER joins ground-truth and detected boxes of VCR.

    Raises:
        DatasetError: they are of pictures of two sizes or have features of two widths.
    """
    if (first.width, first.height, first.features_RF.shape[1]) != (
        second.width,
        second.height,
        second.features_RF.shape[1],
    ):
        raise DatasetError("Region features of two pictures or two detectors cannot be joined.")
    confidences = (first.confidence_R, second.confidence_R)
    both = [confidence for confidence in confidences if confidence is not None]
    return RegionFeatures(
        features_RF=np.concatenate([first.features_RF, second.features_RF]),
        boxes_R4=np.concatenate([first.boxes_R4, second.boxes_R4]),
        width=first.width,
        height=first.height,
        box_index_R=np.concatenate([first.box_index_R, second.box_index_R]),
        stated_sides_R2=np.concatenate([first.sides(), second.sides()]),
        confidence_R=np.concatenate(both) if len(both) == len(confidences) else None,
    )


def are_regions(source: Path, split: str) -> bool:
    """Tell whether a source of an import is a detector's region features, and not arrays without boxes."""
    path = Path(str(source).replace(SPLIT, split))
    if path.is_dir():
        return not any(file.suffix in (".npy", ".pt") for file in path.rglob("*"))
    if path.suffix not in (".h5", ".hdf5"):
        return path.suffix == ".tsv"
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "image_features" in file
    except OSError:
        return False


def open_regions(path: Path, stack: ExitStack) -> RegionReader:
    """Open region features.

    Args:
        path: `.tsv` file; `.h5` or `.hdf5` file (with one `*imgid2idx.pkl` or `.json` beside it); folder with
            `data.mdb`, or in which one folder has it, as UNITER's lie; or folder of `.npz` or `.json` files.
        stack: closes the file.

    Raises:
        DatasetError: nothing of these is there.
    """
    if path.suffix == ".tsv":
        return TsvRegions(path)
    if path.suffix in (".h5", ".hdf5"):
        from advl_pipeline.extraction.regions.hdf5 import Hdf5Regions

        return Hdf5Regions(path, index=_index_beside(path), stack=stack)
    if (folder := _lmdb_folder(path)) is not None:
        try:
            from advl_pipeline.extraction.regions.uniter_lmdb import UniterRegions
        except ImportError as error:
            raise DatasetError(
                "Reading UNITER's LMDB needs packages that are not installed.",
                where=str(folder),
                why=str(error),
                next_command=install_extra("uniter"),
            ) from None
        return UniterRegions(folder, stack)
    for suffix in (".npz", ".json"):
        # Counts beside UNITER's LMDB are no features.
        if path.is_dir() and any(not file.name.startswith("nbb_") for file in path.rglob(f"*{suffix}")):
            return PerPictureRegions(path, suffix=suffix)
    raise DatasetError(
        "There are no region features in a known format.",
        where=str(path),
        why="expected .tsv, .h5 or .hdf5, a folder with data.mdb, or a folder of .npz, .json, .npy or .pt files",
    )


def _lmdb_folder(path: Path) -> Path | None:
    """Return the folder of an LMDB: the path itself, or the one folder in it that is one."""
    if (path / "data.mdb").is_file():
        return path
    found = sorted(file.parent for file in path.glob("*/data.mdb"))
    if len(found) > 1:
        raise DatasetError(
            "Several LMDBs of region features lie in one folder.",
            where=str(path),
            why=", ".join(folder.name for folder in found),
            next_command=f"name one of them, such as {found[0]}",
        )
    return found[0] if found else None


def _index_beside(path: Path) -> Path:
    """Return the one index file of an HDF5 file; BUTD names it after the split and the number of boxes."""
    found = sorted(file for file in path.parent.glob("*imgid2idx.*") if file.suffix in (".pkl", ".json"))
    own = [file for file in found if file.name.startswith(path.stem)] or found
    if len(own) != 1:
        raise DatasetError(
            "The index of region features is missing or not the only one.",
            where=str(path.parent),
            why=f"found {', '.join(file.name for file in own) or 'no *imgid2idx.pkl or .json'}",
        )
    return own[0]
