"""A detector's region features, whatever file they come from: named arrays of one picture, checked.

Each format has a reader that yields the name of a picture and how to read its arrays: `tsv_regions.py`,
`hdf5_regions.py`, `npz_regions.py`, `json_regions.py`, `lmdb_regions.py`. Names of arrays are those of `.npz` files:
`features`; `boxes` or `bbox` in pixels, or `norm_bb` in fractions (corners, then width and height); optionally
`num_boxes`, `conf`, `image_w` with `image_h`, and `image_box_feature`, the feature of the whole picture. Of boxes the
first four columns are used, of `norm_bb` six.

Shapes: R regions, F feature width.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.boxes import TOLERANCE
from advl_pipeline.datasets.problems import Malformed, unreadable

Floats = npt.NDArray[np.float32]

MALFORMED_REGIONS = "Region features are malformed."


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundFeatures:
    """Features of one picture from files, float32.

    `values` are token rows (M, D), or the feature of the entire picture (D,). If the rows are regions, `regions` has
    their columns (`cache.layout.REGION_COLUMNS`), and `whole_D` is the picture's own feature if the files have it.
    """

    values: Floats
    regions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    whole_D: Floats | None = None


Arrays = dict[str, npt.NDArray[Any]]
"""Arrays of one picture, by the names above."""


def regions_of(arrays: Arrays, size: tuple[int, int]) -> FoundFeatures:
    """Check named arrays and convert them to detected regions, which belong to none of the dataset's own boxes.

    Args:
        arrays: see the module's docstring for the names.
        size: (width, height) of the picture.

    Raises:
        Malformed: an array is missing or not numeric, shapes do not match, values are not finite, boxes are outside
            the picture, or the picture has another size.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise Malformed(f"array {name!r} is of {array.dtype}, not of numbers")
    if "features" not in arrays:
        raise Malformed("there is no array 'features'")
    rows = positive(arrays["num_boxes"].reshape(-1)[:1].sum(), "num_boxes") if "num_boxes" in arrays else None
    if {"image_w", "image_h"} <= arrays.keys():
        stated = tuple(positive(arrays[name].sum(), name) for name in ("image_w", "image_h"))
        if stated != size:
            raise Malformed(
                f"its features are for a picture of {stated[0]}x{stated[1]}, the picture is {size[0]}x{size[1]}"
            )
    boxes = next((arrays[name] for name in ("boxes", "bbox", "norm_bb") if name in arrays), None)
    if boxes is None or boxes.ndim != 2 or boxes.shape[1] < 4:
        raise Malformed("there is no array of boxes with four columns")
    boxes = boxes[:rows].astype(np.float32)
    size_4 = np.array([*size, *size], dtype=np.float32)
    is_shares = not {"boxes", "bbox"} & arrays.keys()
    boxes_R4 = boxes[:, :4] * size_4 if is_shares else boxes[:, :4]
    features_RF = arrays["features"][:rows].astype(np.float32)
    if features_RF.ndim != 2 or len(boxes_R4) != len(features_RF):
        raise Malformed(f"features of shape {features_RF.shape} and boxes of shape {boxes_R4.shape} do not fit")
    confidence_R = np.full(len(features_RF), -1, np.float32)
    if "conf" in arrays:
        confidence_R = arrays["conf"][:rows].astype(np.float32)
        if confidence_R.shape != (len(features_RF),):
            raise Malformed(f"{len(features_RF)} regions and confidences of shape {confidence_R.shape}")
    whole_F = arrays["image_box_feature"].astype(np.float32) if "image_box_feature" in arrays else None
    for what, values in (
        ("features", features_RF),
        ("boxes", boxes),
        ("confidences", confidence_R),
        ("feature of the whole picture", whole_F),
    ):
        if values is not None and not np.isfinite(values).all():
            raise Malformed(f"its {what} hold a value that is not finite")
    x1, y1, x2, y2 = boxes_R4.T
    # Half-precision fractions have an error of up to 2^-11 of a picture's side.
    reach_x, reach_y = TOLERANCE + size[0] / 2048, TOLERANCE + size[1] / 2048
    is_inside = (x1 >= -reach_x) & (y1 >= -reach_y) & (x2 <= size[0] + reach_x) & (y2 <= size[1] + reach_y)
    is_box = is_inside & (x1 <= x2) & (y1 <= y2)
    if not is_box.all():
        row = int(np.flatnonzero(~is_box)[0])
        raise Malformed(f"box {row} is outside the picture of {size[0]}x{size[1]}: {boxes_R4[row].tolist()}")
    corners_R4 = boxes_R4 / size_4
    # In half precision the stated sides differ from the differences of the corners.
    sides_R2 = boxes[:, 4:6] if is_shares and boxes.shape[1] >= 6 else corners_R4[:, 2:] - corners_R4[:, :2]
    return FoundFeatures(
        # Decoded bytes are read-only, which PyTorch warns about.
        values=np.require(features_RF, np.float32, ["C", "W"]),
        regions={
            "boxes": np.concatenate([corners_R4, sides_R2], axis=1).astype(np.float32),
            "box_index": np.full(len(features_RF), -1, np.int32),
            "confidence": confidence_R,
        },
        whole_D=None if whole_F is None else np.require(whole_F, np.float32, ["C", "W"]),
    )


def decode_floats(value: Any, *, rows: int, what: str) -> Floats:
    """Decode base64 of float32 into (rows, columns).

    Raises:
        Malformed: the value is not base64, or its length does not match the rows.
    """
    if not isinstance(value, (str, bytes)):
        raise Malformed(f"{what} are not base64 text")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what} are not base64") from None
    if rows <= 0 or not data or len(data) % (4 * rows):
        raise Malformed(f"{what} of {len(data)} bytes are not {rows} rows of float32")
    return np.frombuffer(data, dtype="<f4").reshape(rows, -1)


def positive(value: Any, what: str) -> int:
    """Return a positive integer given as text or as a number; raises `Malformed` for anything else."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number <= 0 or isinstance(value, bool):
        raise Malformed(f"{what} is {value!r}")
    return number


def corners_of(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the boxes (R, 4) of a format with only their corners; raises `Malformed` for another shape."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise Malformed(f"boxes of shape {boxes.shape}, expected four columns")
    return boxes


class Entry(NamedTuple):
    """Location of a picture's features, for errors, and the function that reads them."""

    where: str
    read: Callable[[], Arrays]


def claim(pictures: dict[Any, Path], name: Any, picture: Path) -> None:
    """Assign a name to a picture; raises `DatasetError` if another picture has it."""
    if (other := pictures.setdefault(name, picture)) != picture:
        raise DatasetError(
            "Two pictures go by one name in features.",
            where=str(name),
            why=f"{other} and {picture}",
            next_command="give the pictures, and their features, names of their own: cats/0.npy for cats/0.png",
        )


class RegionFeatures:
    """Region features by the pictures' names in their format.

    Args:
        path: path of the files.
        entries: (name, entry) of all pictures.

    Raises:
        DatasetError: a file is missing or, as found on opening, malformed.
    """

    def __init__(self, path: Path, entries: Iterable[tuple[str, Entry]]) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}
        try:
            for name, entry in entries:
                if (other := self._entries.setdefault(name, entry)) is not entry:
                    raise DatasetError(
                        "Features are there twice.", where=entry.where, why=f"{name} is at {other.where} too"
                    )
        except OSError as error:
            raise unreadable(path, error, what="A file of region features") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def read(self, name: str, *, width: int, height: int) -> FoundFeatures:
        """Read the regions of one picture.

        Args:
            name: the picture's name in this format, see `tower.Naming`.
            width, height: the picture's size in pixels; boxes stored as fractions are scaled by it.

        Raises:
            DatasetError: the picture is missing, or its entry is damaged, has a value that is not finite, or is for
                a picture of another size.
        """
        if name not in self:
            raise DatasetError("A picture has no region features.", where=str(self._path), why=f"no entry for {name}")
        entry = self._entries[name]
        try:
            return regions_of(entry.read(), (width, height))
        except (Malformed, OSError, IndexError, ValueError) as error:
            raise DatasetError(MALFORMED_REGIONS, where=entry.where, why=f"picture {name}: {error}") from None


def decode_record(record: Mapping[str, Any]) -> Arrays:
    """Decode the fields common to TSV and JSON: sizes, counts, and arrays of float32 in base64."""
    count = positive(record.get("num_boxes"), "num_boxes")
    arrays = {name: np.array(positive(record[name], name)) for name in ("image_w", "image_h") if name in record}
    arrays["features"] = decode_floats(record.get("features"), rows=count, what="features")
    arrays["boxes"] = corners_of(decode_floats(record.get("boxes"), rows=count, what="boxes"))
    return arrays


def read_numbers(path: Path, *, what: str) -> dict[str, int]:
    """Read a dictionary of integers from JSON; raises `DatasetError` with the message `what`."""
    try:
        return {str(name): int(number) for name, number in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, OverflowError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(what, where=str(path), why=getattr(error, "strerror", None) or str(error)) from None
