"""One file per picture: `.npz` (VisualBERT, ViLBERT and their like) and VL-BERT's `.json`.

`.npz`: `features`; `boxes` or `bbox` in pixels, or `norm_bb` in shares (corners, then width and height); optionally
`num_boxes`, `conf`, and `image_w` with `image_h`. JSON: `num_boxes`, `boxes` and `features` in base64 of float32,
optionally `image_w`, `image_h` and `image_box_feature`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.array_archives import DamagedArchive, read_array_archive
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.errors import DatasetError
from advl_pipeline.extraction.regions.interface import RegionFeatures, decode_floats, make_regions, positive

Parse = Callable[[Path, tuple[int, int]], RegionFeatures]


class PerPictureRegions:
    """Regions in a folder with one file per picture.

    Args:
        folder: names are relative to it, without the suffix.
        suffix: ".npz" or ".json".

    Raises:
        DatasetError: the folder is missing.
    """

    def __init__(self, folder: Path, *, suffix: str) -> None:
        if not folder.is_dir():
            raise DatasetError("The folder of region features is missing.", where=str(folder))
        self._folder = folder
        self._suffix = suffix
        self._parse: Parse = _parse_npz if suffix == ".npz" else _parse_json

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and is_safe_name(name) and (self._folder / f"{name}{self._suffix}").is_file()

    def read(self, name: str, *, width: int, height: int) -> RegionFeatures:
        if name not in self:
            where = str(self._folder / f"{name}{self._suffix}")
            raise DatasetError("A picture has no region features.", where=where, why="there is no such file")
        path = self._folder / f"{name}{self._suffix}"
        try:
            return self._parse(path, (width, height))
        except Malformed as error:
            raise DatasetError("Region features are malformed.", where=str(path), why=str(error)) from None


def regions_of_arrays(file: IO[bytes], size: tuple[int, int]) -> RegionFeatures:
    """Read the arrays of an `.npz` file that is open for reading.

    Raises:
        Malformed: not an archive of plain arrays, or arrays that do not fit.
    """
    try:
        arrays = read_array_archive(file, wanted=lambda name: name != "soft_labels")
    except DamagedArchive as error:
        raise Malformed(str(error)) from None
    return regions_of(arrays, size)


def regions_of(arrays: dict[str, npt.NDArray[Any]], size: tuple[int, int]) -> RegionFeatures:
    """Make regions of named arrays; see the module's docstring for the names.

    Raises:
        Malformed: an array is missing, not of numbers, or does not fit.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise Malformed(f"array {name!r} is of {array.dtype}, not of numbers")
    if "features" not in arrays:
        raise Malformed("there is no array 'features'")
    rows = None
    if "num_boxes" in arrays:
        rows = positive(arrays["num_boxes"].reshape(-1)[:1].sum(), "num_boxes")
    boxes = next((arrays[name] for name in ("boxes", "bbox", "norm_bb") if name in arrays), None)
    if boxes is None or boxes.ndim != 2 or boxes.shape[1] < 4:
        raise Malformed("there is no array of boxes with four columns")
    boxes_R4 = boxes[:rows, :4].astype(np.float32)
    sides_R2 = None
    if "boxes" not in arrays and "bbox" not in arrays:
        boxes_R4 = boxes_R4 * np.array([*size, *size], dtype=np.float32)
        if boxes.shape[1] >= 6:
            sides_R2 = boxes[:rows, 4:6].astype(np.float32)
    confidence = arrays.get("conf")
    stated = None
    if "image_w" in arrays and "image_h" in arrays:
        stated = (positive(arrays["image_w"].sum(), "image_w"), positive(arrays["image_h"].sum(), "image_h"))
    return make_regions(
        features_RF=arrays["features"][:rows].astype(np.float32),
        boxes_R4=boxes_R4,
        size=size,
        stated_size=stated,
        stated_sides_R2=sides_R2,
        confidence_R=None if confidence is None else confidence[:rows].astype(np.float32),
    )


def _parse_npz(path: Path, size: tuple[int, int]) -> RegionFeatures:
    # NumPy leaves a file open that it opened itself and found damaged.
    with path.open("rb") as file:
        return regions_of_arrays(file, size)


def _parse_json(path: Path, size: tuple[int, int]) -> RegionFeatures:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise Malformed("not an object")
    count = positive(record.get("num_boxes"), "num_boxes")
    stated = None
    if "image_w" in record and "image_h" in record:
        stated = (positive(record["image_w"], "image_w"), positive(record["image_h"], "image_h"))
    whole = record.get("image_box_feature")
    return make_regions(
        features_RF=decode_floats(record.get("features"), rows=count, what="features"),
        boxes_R4=decode_floats(record.get("boxes"), rows=count, what="boxes"),
        size=size,
        stated_size=stated,
        whole_F=None if whole is None else decode_floats(whole, rows=1, what="image_box_feature")[0],
    )
