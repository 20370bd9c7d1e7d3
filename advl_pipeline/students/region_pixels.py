"""What a detector-free student sees: the pixels of each box and of the whole picture, small.

Shapes: R boxes of a picture, S side of a square crop in pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from advl_pipeline.datasets.pictures import PICTURE_ERRORS, unreadable_picture
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.students.recently_used import RecentlyUsed

CROP_MARGIN = 0.1
"""Context added around a box on each side, as a share of the box."""


class RegionPixels:
    """Crops of pictures as uint8 RGB, kept in memory up to a bound in bytes, least recently used out first."""

    def __init__(self, crop_size: int, *, max_bytes: int = 256 << 20) -> None:
        self.crop_size = crop_size
        self._kept: RecentlyUsed[npt.NDArray[np.uint8]] = RecentlyUsed(
            max(1, max_bytes // (16 * 3 * crop_size * crop_size))
        )

    def crops(self, unit: ImageUnit) -> npt.NDArray[np.uint8]:
        """Return (R + 1, S, S, 3): the whole picture first, then each box in dataset order.

        Raises:
            DatasetError: the picture cannot be decoded.
        """
        return self._kept.get(unit.unit_id, lambda: self._read(unit))

    def _read(self, unit: ImageUnit) -> npt.NDArray[np.uint8]:
        size = (self.crop_size, self.crop_size)
        try:
            with Image.open(unit.path) as file:
                picture = file.convert("RGB")
        except PICTURE_ERRORS as error:
            raise unreadable_picture(unit.path, error) from None
        crops = [picture.resize(size, Image.Resampling.BOX)]
        for x1, y1, x2, y2 in unit.boxes_R4.tolist():
            margin_x, margin_y = (x2 - x1) * CROP_MARGIN, (y2 - y1) * CROP_MARGIN
            box = (
                max(0.0, x1 - margin_x),
                max(0.0, y1 - margin_y),
                min(float(picture.width), x2 + margin_x),
                min(float(picture.height), y2 + margin_y),
            )
            crops.append(picture.resize(size, Image.Resampling.BILINEAR, box=box))
        return np.stack([np.asarray(crop) for crop in crops])


def box_positions(unit: ImageUnit) -> npt.NDArray[np.float32]:
    """Return (R + 1, 7): x1, y1, x2, y2, width, height and area as shares of the picture, whole picture first.

    The seven values are those of UNITER's region positions.
    """
    scale = np.array([unit.width, unit.height, unit.width, unit.height], dtype=np.float32)
    corners = np.concatenate([np.array([[0, 0, 1, 1]], dtype=np.float32), unit.boxes_R4.astype(np.float32) / scale])
    sides = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners, sides, sides[:, :1] * sides[:, 1:]], axis=1).astype(np.float32)
