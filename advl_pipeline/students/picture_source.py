"""Sources of students' pictures and regions: decoded on demand, or cached in memory.

`PixelRegions` and `PixelGrid` need no detector and no download. A fixed random projection maps small crops of the
whole picture and of each annotated box, or the patches of a grid, to the student's feature width. These features are
weak and meant for the built-in corpus and for tests. A published checkpoint was trained on a detector's features and
needs those.

Shapes: B pictures, R regions or boxes of a picture, S side in pixels, F feature width.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from advl_pipeline.datasets.pictures import read_picture, read_square
from advl_pipeline.datasets.records import ImageUnit

KEPT_BYTES = 256 << 20
"""Maximum size of decoded pictures in memory."""


class Sized(Protocol):
    """An object that reports its size in memory, such as an array or a tensor."""

    @property
    def nbytes(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class RecentlyUsed(Generic[Item]):
    """A thread-safe LRU cache of items by name, of at most `max_bytes`."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[str, Item] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], Item]) -> Item:
        """Return the item of a name, made if it is not cached; concurrent threads may each make the same item."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        item = make()
        with self._lock:
            if name not in self._kept:
                self._kept[name] = item
                self._num_bytes += item.nbytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= oldest.nbytes
        return item

    def __reduce__(self) -> tuple[object, ...]:
        # A lock cannot be pickled, and the items can be made again.
        return type(self), (self._max_bytes,)


class Announced:
    """A base class of picture sources that can prefetch; its methods do nothing by default."""

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Announce the pictures to be read next."""

    def begin_epoch(self) -> None:
        """Announce that all pictures will be read again."""


class DecodedPictures(Announced):
    """A thread-safe source that decodes picture files and resizes them to squares.

    The most recently used pictures stay in memory, up to `kept_bytes`.
    """

    def __init__(self, size: int, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.size = size
        self._kept: RecentlyUsed[torch.Tensor] = RecentlyUsed(kept_bytes)

    def pictures(self, units: Sequence[ImageUnit]) -> torch.Tensor:
        """Return pictures, (B, 3, S, S) uint8; raises `DatasetError` for a picture that cannot be decoded."""
        return torch.stack([self._kept.get(unit.unit_id, partial(self._read, unit)) for unit in units])

    def _read(self, unit: ImageUnit) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(read_square(unit, self.size).transpose(2, 0, 1)))


def box_positions(unit: ImageUnit) -> npt.NDArray[np.float32]:
    """Return UNITER's positions of the whole picture and of each box, (R + 1, 7).

    They are x1, y1, x2, y2, width, height and area as fractions of the picture.
    """
    scale = np.array([unit.width, unit.height, unit.width, unit.height], dtype=np.float32)
    corners = np.concatenate([np.array([[0, 0, 1, 1]], dtype=np.float32), unit.boxes_R4.astype(np.float32) / scale])
    sides = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners, sides, sides[:, :1] * sides[:, 1:]], axis=1).astype(np.float32)


CROP_MARGIN = 0.1
"""Context added around a box on each side, as a fraction of the box."""

CROP_SIZE = 16
PATCH_SIZE = 8
PROJECTION_SEED = 20_200_921


WHOLE_POSITION_17 = np.array([[0, 0, 1, 1, 1, 1, 1]], dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Regions:
    """Regions of one picture.

    `features_RF` are float32, or float16 if stored as such. `positions_R7` (float32) are x1, y1, x2, y2, width,
    height and area as fractions of the picture. `box_index_R` is the row of `ImageUnit.boxes_R4` for a region, or
    -1. `whole_first` is true if region 0 is the whole picture.
    """

    features_RF: npt.NDArray[np.float32] | npt.NDArray[np.float16]
    positions_R7: npt.NDArray[np.float32]
    box_index_R: npt.NDArray[np.int64]
    whole_first: bool


class RegionSource(Announced, ABC):
    """A deterministic source of the regions of a picture."""

    feature_size: int

    @abstractmethod
    def regions(self, unit: ImageUnit) -> Regions:
        """Return the regions; raises `DatasetError` for a picture without available regions."""


class RandomProjection:
    """relu(W x / sqrt(P)) of P = 3 * S * S centred pixel values x, with a fixed random W."""

    def __init__(self, side: int, feature_size: int) -> None:
        num_pixels = 3 * side**2
        noise = np.random.default_rng(PROJECTION_SEED).standard_normal((num_pixels, feature_size), dtype=np.float32)
        self._projection_PF = noise * np.float32(2.0 / np.sqrt(num_pixels))

    def __call__(self, pixels_RSS3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the features, (R, F)."""
        pixels_RP = pixels_RSS3.reshape(len(pixels_RSS3), -1).astype(np.float32) / np.float32(127.5) - np.float32(1.0)
        return np.maximum(pixels_RP @ self._projection_PF, np.float32(0.0))


class CropRegions(RegionSource):
    """A source of the whole picture and each box, in the dataset's order; features are pixels of crops, 0 to 255.

    The most recently used crops stay in memory.
    """

    def __init__(self, crop_size: int) -> None:
        self.crop_size = crop_size
        self.feature_size = 3 * crop_size**2
        self._kept: RecentlyUsed[npt.NDArray[np.uint8]] = RecentlyUsed()

    def regions(self, unit: ImageUnit) -> Regions:
        crops = self.crops(unit)
        return Regions(
            features_RF=self.features(crops),
            positions_R7=box_positions(unit),
            box_index_R=np.arange(-1, len(crops) - 1),
            whole_first=True,
        )

    def features(self, crops_RSS3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the features of crops, (R, F)."""
        return crops_RSS3.reshape(len(crops_RSS3), -1).astype(np.float32)

    def crops(self, unit: ImageUnit) -> npt.NDArray[np.uint8]:
        """Return crops of the whole picture and each box, (R, S, S, 3); raises `DatasetError` like `regions`."""
        return self._kept.get(unit.unit_id, partial(self._read, unit))

    def _read(self, unit: ImageUnit) -> npt.NDArray[np.uint8]:
        size = (self.crop_size, self.crop_size)
        picture = read_picture(unit)
        crops = [picture.resize(size, Image.Resampling.BOX)]
        for x1, y1, x2, y2 in unit.boxes_R4.tolist():
            margin_x, margin_y = (x2 - x1) * CROP_MARGIN, (y2 - y1) * CROP_MARGIN
            # Datasets tolerate boxes slightly outside the picture; such a box becomes the nearest pixel.
            box = (
                min(max(0.0, x1 - margin_x), picture.width - 1.0),
                min(max(0.0, y1 - margin_y), picture.height - 1.0),
                max(min(float(picture.width), x2 + margin_x), 1.0),
                max(min(float(picture.height), y2 + margin_y), 1.0),
            )
            crops.append(picture.resize(size, Image.Resampling.BILINEAR, box=box))
        return np.stack([np.asarray(crop) for crop in crops])


class PixelRegions(CropRegions):
    """The same crops after the fixed projection."""

    def __init__(self, feature_size: int) -> None:
        super().__init__(CROP_SIZE)
        self.feature_size = feature_size
        self._project = RandomProjection(CROP_SIZE, feature_size)

    def features(self, crops_RSS3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self._project(crops_RSS3)


class PixelGrid(RegionSource):
    """A source of the patches of a square grid, in row-major order, for students with a grid; patches have no box."""

    def __init__(self, feature_size: int, side: int) -> None:
        self.feature_size = feature_size
        self.side = side
        self._project = RandomProjection(PATCH_SIZE, feature_size)

    def regions(self, unit: ImageUnit) -> Regions:
        side = self.side
        pixels = read_square(unit, side * PATCH_SIZE).reshape(side, PATCH_SIZE, side, PATCH_SIZE, 3)
        row, column = np.divmod(np.arange(side * side), side)
        corners = np.stack([column, row, column + 1, row + 1], axis=1) / side
        extent = np.broadcast_to([1 / side, 1 / side, 1 / side**2], (side * side, 3))
        return Regions(
            features_RF=self._project(pixels.swapaxes(1, 2).reshape(side * side, PATCH_SIZE, PATCH_SIZE, 3)),
            positions_R7=np.concatenate([corners, extent], axis=1).astype(np.float32),
            box_index_R=np.full(side * side, -1),
            whole_first=False,
        )


def with_whole_picture(regions: Regions) -> Regions:
    """Return the regions with the whole picture first; if missing, it gets the mean feature, as in VL-BERT."""
    if regions.whole_first:
        return regions
    return Regions(
        features_RF=np.concatenate([regions.features_RF.mean(0, np.float32, keepdims=True), regions.features_RF]),
        positions_R7=np.concatenate([WHOLE_POSITION_17, regions.positions_R7]),
        box_index_R=np.concatenate([np.array([-1]), regions.box_index_R]),
        whole_first=True,
    )
