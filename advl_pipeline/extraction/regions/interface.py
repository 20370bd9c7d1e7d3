"""What readers of region features share: what they give, how formats name pictures, numbers inside text.

Legend: R regions, F feature width.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.boxes import TOLERANCE
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.errors import ConfigError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionFeatures:
    """Regions of one picture.

    `features_RF` float32; `boxes_R4` float32 (x1, y1, x2, y2) in pixels of the picture of `width` x `height`.
    `stated_sides_R2` are the file's own widths and heights as shares of the picture, where it has them: in half
    precision they are not the differences of its corners. `confidence_R` is the detector's, where the file has it.
    `whole_F` is the feature of the whole picture, where the file has it. `box_index_R` int64 is the row of the
    dataset's own boxes that a region stands for, -1 for detected ones.
    """

    features_RF: Floats
    boxes_R4: Floats
    width: int
    height: int
    box_index_R: npt.NDArray[np.int64]
    stated_sides_R2: Floats | None = None
    confidence_R: Floats | None = None
    whole_F: Floats | None = None

    def sides(self) -> Floats:
        """Return (R, 2) width and height as shares of the picture: the file's own, else of the corners."""
        if self.stated_sides_R2 is not None:
            return self.stated_sides_R2
        size: Floats = np.array([self.width, self.height], dtype=np.float32)
        corners_R22 = self.boxes_R4.reshape(-1, 2, 2) / size
        return np.asarray(corners_R22[:, 1] - corners_R22[:, 0], dtype=np.float32)


class RegionReader(Protocol):
    """Region features by name of the picture, as its format names pictures."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str, *, width: int, height: int) -> RegionFeatures:
        """Read the regions of one picture.

        Args:
            name: of the picture in this format, see `naming`.
            width, height: of the picture in pixels; formats that store shares of the picture are scaled by them.

        Raises:
            DatasetError: there is no such picture, its entry is damaged, holds a value that is not finite, or is
                for a picture of another size.
        """
        ...


def make_regions(
    *,
    features_RF: Floats,
    boxes_R4: Floats,
    size: tuple[int, int],
    stated_size: tuple[int, int] | None = None,
    stated_sides_R2: Floats | None = None,
    confidence_R: Floats | None = None,
    whole_F: Floats | None = None,
) -> RegionFeatures:
    """Check arrays and make regions of them.

    Args:
        size: (width, height) of the picture.
        stated_size: of the picture that the file was computed from, where the file says it.
        stated_sides_R2: width and height of each region as shares of the picture, where the file says them.

    Raises:
        Malformed: shapes that do not fit, values that are not finite, boxes outside the picture, another size.
    """
    if stated_size is not None and stated_size != size:
        raise Malformed(
            f"its features are for a picture of {stated_size[0]}x{stated_size[1]}, the picture is {size[0]}x{size[1]}"
        )
    if features_RF.ndim != 2 or boxes_R4.shape != (len(features_RF), 4):
        raise Malformed(f"features of shape {features_RF.shape} and boxes of shape {boxes_R4.shape} do not fit")
    if confidence_R is not None and confidence_R.shape != (len(features_RF),):
        raise Malformed(f"{len(features_RF)} regions and confidences of shape {confidence_R.shape}")
    for what, array in (
        ("features", features_RF),
        ("boxes", boxes_R4),
        ("sides of boxes", stated_sides_R2),
        ("confidences", confidence_R),
        ("feature of the whole picture", whole_F),
    ):
        if array is not None and not np.isfinite(array).all():
            raise Malformed(f"its {what} hold a value that is not finite")
    x1, y1, x2, y2 = boxes_R4.T
    # Half-precision shares of a large picture are off by up to 2^-11 of its side.
    reach_x, reach_y = TOLERANCE + size[0] / 2048, TOLERANCE + size[1] / 2048
    inside = (x1 >= -reach_x) & (y1 >= -reach_y) & (x2 <= size[0] + reach_x) & (y2 <= size[1] + reach_y)
    if not (inside & (x1 <= x2) & (y1 <= y2)).all():
        row = int(np.flatnonzero(~(inside & (x1 <= x2) & (y1 <= y2)))[0])
        raise Malformed(f"box {row} lies outside the picture of {size[0]}x{size[1]}: {boxes_R4[row].tolist()}")
    # Decoded bytes are read-only, which PyTorch warns about.
    return RegionFeatures(
        features_RF=np.require(features_RF, np.float32, ["C", "W"]),
        boxes_R4=np.require(boxes_R4, np.float32, ["C", "W"]),
        width=size[0],
        height=size[1],
        box_index_R=np.full(len(features_RF), -1, dtype=np.int64),
        stated_sides_R2=None if stated_sides_R2 is None else np.require(stated_sides_R2, np.float32, ["C", "W"]),
        confidence_R=confidence_R,
        whole_F=None if whole_F is None else np.require(whole_F, np.float32, ["C", "W"]),
    )


def decode_floats(value: Any, *, rows: int, what: str) -> npt.NDArray[np.float32]:
    """Decode base64 of float32 into (rows, columns).

    Raises:
        Malformed: not base64, or not a whole number of rows.
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
    """Return a number that must be a positive whole one, written as text or as a number.

    Raises:
        Malformed: it is not.
    """
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number <= 0 or isinstance(value, bool):
        raise Malformed(f"{what} is {value!r}")
    return number


Naming = Literal["stem", "number", "uniter"]
"""number  "9": the number that ends the file's name (BUTD's TSV and HDF5).
stem    "COCO_val2014_000000000009": the file's name without its suffix (LXMERT's TSV, files per picture).
uniter  "coco_val2014_000000000009", "flickr30k_000000000009", "vcr_val_<stem>", "vcr_gt_val_<stem>"."""

NAMINGS: tuple[Naming, ...] = get_args(Naming)

_LAST_NUMBER = re.compile(r"(\d+)$")
_COCO = re.compile(r"COCO_(?P<subtype>[a-z]+\d{4})_(?P<number>\d{12})")


def name_of(picture: Path, naming: Naming, *, vcr_prefix: str = "") -> str:
    """Return a picture's name in a format.

    Args:
        naming: see `Naming`.
        vcr_prefix: for UNITER's files of VCR, such as "vcr_val_" or "vcr_gt_val_".

    Raises:
        ConfigError: the file's name does not fit the naming.
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
    raise ConfigError(f"The naming {naming!r} does not fit a picture.", where=str(picture))
