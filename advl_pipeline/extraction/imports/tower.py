"""A tower over existing features for import into a cache: a detector's regions, or arrays named after pictures.

`regions.py` checks regions, a module for each format reads them, and `filed_arrays.py` reads arrays. This module
finds the file with a picture's regions and the picture's name in it. Two-dimensional arrays are token rows, and their
mean is the global feature. One-dimensional arrays are global features.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from advl_pipeline.base.configuration import require_effect
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.cards import JOIN, picture_splits
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.extraction.config import ImportedExtraction
from advl_pipeline.extraction.imports.filed_arrays import filed_arrays
from advl_pipeline.extraction.imports.hdf5_regions import hdf5_entries
from advl_pipeline.extraction.imports.json_regions import json_entries
from advl_pipeline.extraction.imports.lmdb_regions import lmdb_entries
from advl_pipeline.extraction.imports.npz_regions import npz_entries
from advl_pipeline.extraction.imports.regions import FoundFeatures, RegionFeatures, claim
from advl_pipeline.extraction.imports.tsv_regions import tsv_entries
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit

SPLIT = "{split}"
"""Placeholder in a path for the split of the pictures."""

Naming = Literal["stem", "number", "uniter"]
"""number  "9": the number that ends the file's name (BUTD's TSV and HDF5).
stem    "COCO_val2014_000000000009": the file's name without its suffix (LXMERT's TSV, files per picture).
uniter  "coco_val2014_000000000009", "flickr30k_000000000009", "vcr_val_<stem>", "vcr_gt_val_<stem>"."""

NAMINGS: tuple[Naming, ...] = get_args(Naming)

_LAST_NUMBER = re.compile(r"(\d+)$")

_COCO = re.compile(r"COCO_(?P<subtype>[a-z]+\d{4})_(?P<number>\d{12})")


def open_tower(config: ImportedExtraction, units: Sequence[ImageUnit], stack: ExitStack) -> ImportedTower:
    """Open the files of imported features as a tower for these pictures.

    Args:
        stack: closes the files.

    Raises:
        ConfigError: an option does not apply to the files.
        DatasetError: a picture has no features, or they cannot be read safely.
    """
    where = str(config.source)
    if not units:
        raise DatasetError("The split has no pictures.", where=f"{config.dataset}, split {config.split}")
    splits = JOIN.join(picture_splits(config.dataset, config.split)).split(JOIN)
    if config.source.is_dir() and any(config.source.rglob("*.npy")):
        why = "the source holds arrays that are filed under pictures, and no regions of a detector"
        require_effect(config, {"files of a detector": why})
        return ImportedTower(filed_arrays(config.source, units), units, where=where)
    files = partial(RegionFiles, splits=splits, first=units[0], stack=stack)
    folder = config.ground_truth_regions
    detected = files(config.source, prefix="vcr_")
    ground_truth = None if folder is None else files(folder, prefix="vcr_gt_", ground_truth=True)
    return ImportedTower(partial(found_features, detected, ground_truth), units, where=where)


class ImportedTower:
    """An `ImageTower` over existing features. Its constructor reads all of them once for their digest.

    Args:
        read: returns the features of a picture; several threads may call it at once.
        units: pictures that must have features.
        where: the files, for errors.

    Raises:
        DatasetError: as `read`, or the features of pictures differ in kind.
    """

    def __init__(self, read: Callable[[ImageUnit], FoundFeatures], units: Sequence[ImageUnit], *, where: str) -> None:
        self._read = read
        self._rows: dict[str, int] = {}
        self.fits_float16 = True
        state = hashlib.sha256()
        kinds: dict[tuple[int, int, bool], ImageUnit] = {}
        for unit in tqdm(units, desc="reading features", unit="picture"):
            features = read(unit)
            self._rows[unit.unit_id] = len(features.values) if features.values.ndim == 2 else 0
            kinds.setdefault((features.values.ndim, features.values.shape[-1], features.whole_D is not None), unit)
            state.update(unit.unit_id.encode())
            for array in (features.values, *features.regions.values(), features.whole_D):
                if array is not None:
                    state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            if self.fits_float16:
                with np.errstate(over="ignore"):
                    self.fits_float16 = bool((features.values.astype(np.float16) == features.values).all())
        if len(kinds) != 1:
            shapes = {2: "rows", 1: "one vector"}
            with_whole = {True: " and the whole picture's", False: ""}
            examples = [
                f"{shapes[ndim]} of {width}{with_whole[has_whole]} for {unit.path.name}"
                for (ndim, width, has_whole), unit in kinds.items()
            ]
            raise DatasetError(
                "The features of all pictures must have the same width and kind.",
                where=where,
                why=", ".join(examples[:2]),
            )
        (((ndim, self.global_dim, self._has_whole), _),) = kinds.items()
        self.token_dim = self.global_dim
        self.has_regions = bool(features.regions)
        self.tokens: Literal["boxes", "grid", "none"] = "none"
        """Kind of token features: one row per box, a grid, or none."""
        if ndim == 2:
            are_boxes = all(self._rows[unit.unit_id] == len(unit.boxes_R4) for unit in units)
            self.tokens = "boxes" if are_boxes or self.has_regions else "grid"
        self._digest = state.hexdigest()

    def describe(self) -> dict[str, Any]:
        is_mean = self.tokens != "none" and not self._has_whole
        return {
            "kind": "imported regions" if self.has_regions else "imported features",
            "content_digest": self._digest,
            "global": "mean of the rows" if is_mean else "as given",
        }

    def num_tokens(self, unit: ImageUnit) -> int:
        return self._rows[unit.unit_id]

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        features = self._read(unit)
        rows_MD = torch.from_numpy(np.atleast_2d(features.values))
        whole_D = rows_MD.mean(dim=0) if features.whole_D is None else torch.from_numpy(features.whole_D)
        size = torch.tensor([unit.width, unit.height], dtype=torch.float32)
        return PreparedUnit(
            inputs={"rows": rows_MD, "whole": whole_D, "size": size},
            num_tokens=self._rows[unit.unit_id],
            regions=features.regions,
        )

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        size_N2 = torch.stack([unit.inputs["size"] for unit in units])
        return EncodedBatch(
            global_ND=torch.stack([unit.inputs["whole"] for unit in units]),
            token_values=[unit.inputs["rows"][: unit.num_tokens] for unit in units],
            stats={"width": size_N2[:, 0], "height": size_N2[:, 1]} if self.has_regions else {},
        )


class RegionFiles:
    """Files of regions: one, or one per split of the pictures.

    Args:
        path: path of the files; `{split}` is replaced by each split.
        prefix: prefix of UNITER's names of VCR's pictures, before the split.
        splits: splits of the pictures, such as ["train2014", "val2014"].
        first: a picture; the first naming by which it is found is used for all pictures.
        stack: closes the files.
        ground_truth: the files have features of the dataset's own boxes, row by row.

    Raises:
        DatasetError: the files do not exist, or `first` is not found.
    """

    def __init__(
        self,
        path: Path,
        *,
        prefix: str,
        splits: Sequence[str],
        first: ImageUnit,
        stack: ExitStack,
        ground_truth: bool = False,
    ) -> None:
        places = {split: Path(str(path).replace(SPLIT, split)) for split in splits}
        readers = {place: open_regions(place, stack) for place in dict.fromkeys(places.values())}
        self._files = [(f"{prefix}{split}_", readers[place]) for split, place in places.items()]
        self._is_ground_truth = ground_truth
        self._pictures: dict[str, Path] = {}

        ways = (
            by
            for by in NAMINGS
            for before, reader in self._files
            if name_of(first.path, by, vcr_prefix=before) in reader
        )
        if (naming := next(ways, None)) is None:
            raise DatasetError(
                "A picture has no region features.",
                where=str(path),
                why=f"{first.path.name} is not found in any way that files name pictures: {', '.join(NAMINGS)}",
            )
        self._naming = naming

    def regions(self, unit: ImageUnit) -> FoundFeatures:
        """Read a picture's regions from the file that has them; if none does, raise the error of the first file.

        Raises:
            DatasetError: the regions are missing, damaged or for another size, two pictures have the same name, or
                the number of ground-truth rows differs from that of the picture's boxes.
        """
        named = [
            (before, name_of(unit.path, self._naming, vcr_prefix=before), reader) for before, reader in self._files
        ]
        holding = (entry for entry in named if len(named) == 1 or entry[1] in entry[2])
        before, name, reader = next(holding, named[0])
        claim(self._pictures, f"{before}{name}", unit.path)
        entry = reader.read(name, width=unit.width, height=unit.height)
        if not self._is_ground_truth:
            return entry
        if len(entry.values) != len(unit.boxes_R4):
            raise DatasetError(
                "Features of ground-truth boxes do not fit the dataset's boxes.",
                where=name,
                why=f"{len(entry.values)} regions, the picture has {len(unit.boxes_R4)} boxes",
            )
        return replace(entry, regions={**entry.regions, "box_index": np.arange(len(entry.values), dtype=np.int32)})


def found_features(detected: RegionFiles, ground_truth: RegionFiles | None, unit: ImageUnit) -> FoundFeatures:
    """Return a picture's regions in the order of a cache: the dataset's own boxes first, as UNITER joins them.

    Raises:
        DatasetError: as `RegionFiles.regions`, or the picture has no regions.
    """
    regions = detected.regions(unit)
    if ground_truth is not None:
        regions = join_regions(ground_truth.regions(unit), regions)
    if not len(regions.values):
        raise DatasetError("A picture has no region features.", where=str(unit.path), why="its entry has no region")
    return regions


def join_regions(first: FoundFeatures, second: FoundFeatures) -> FoundFeatures:
    """Return the regions of both, without confidences if one has none; raises `DatasetError` if the widths differ."""
    if first.values.shape[1] != second.values.shape[1]:
        raise DatasetError("Region features of two detectors cannot be joined.")
    joined = {name: np.concatenate([rows, second.regions[name]]) for name, rows in first.regions.items()}
    if any(len(part.values) and (part.regions["confidence"] < 0).all() for part in (first, second)):
        joined["confidence"] = np.full_like(joined["confidence"], -1)
    return FoundFeatures(values=np.concatenate([first.values, second.values]), regions=joined)


def name_of(picture: Path, naming: Naming, *, vcr_prefix: str = "") -> str:
    """Return a picture's name in a format, "" if the file's name does not fit the naming.

    Args:
        naming: see `Naming`.
        vcr_prefix: prefix in UNITER's files of VCR, such as "vcr_val_" or "vcr_gt_val_".
    """
    stem = picture.stem
    if naming == "stem":
        return stem
    number = _LAST_NUMBER.search(stem)
    if naming == "number" and number:
        return str(int(number[1]))
    if naming == "uniter":
        if coco := _COCO.fullmatch(stem):
            return f"coco_{coco['subtype']}_{coco['number']}"
        if stem.isdecimal():
            return f"flickr30k_{int(stem):012d}"
        if vcr_prefix:
            return vcr_prefix + stem
    return ""


def open_regions(path: Path, stack: ExitStack) -> RegionFeatures:
    """Open region features.

    Args:
        path: a `.tsv` file; an `.h5` or `.hdf5` file, with one `*imgid2idx.json` in its folder; a folder with
            UNITER's `data.mdb` in it or in one subfolder; or a folder of `.npz` or `.json` files.
        stack: closes the file.

    Raises:
        DatasetError: the path is none of these.
    """
    if path.suffix == ".tsv":
        return RegionFeatures(path, tsv_entries(path))
    if path.suffix in (".h5", ".hdf5"):
        return RegionFeatures(path, hdf5_entries(path, stack))
    folders = [path] if (path / "data.mdb").is_file() else sorted(file.parent for file in path.glob("*/data.mdb"))
    if len(folders) > 1:
        raise DatasetError(
            "Several LMDBs of region features are in one folder.",
            where=str(path),
            why=", ".join(folder.name for folder in folders),
            next_command=f"name one of them, such as {folders[0]}",
        )
    if folders:
        return RegionFeatures(folders[0], lmdb_entries(folders[0], stack))
    for suffix, entries in ((".npz", npz_entries), (".json", json_entries)):
        # The nbb_*.json files next to UNITER's LMDB are counts, not features.
        if path.is_dir() and any(not file.name.startswith("nbb_") for file in path.rglob(f"*{suffix}")):
            return RegionFeatures(path, entries(path))
    raise DatasetError(
        "There are no region features in a known format.",
        where=str(path),
        why="expected .tsv, .h5 or .hdf5, a folder with data.mdb, or a folder of .npz, .json or .npy files",
    )
