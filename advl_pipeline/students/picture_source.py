"""Where a student over pixels has its pictures from: decoded when asked for, or what was decoded before.

Shapes: B pictures, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.students.recently_used import RecentlyUsed

KEPT_BYTES = 256 << 20


class PictureSource(Protocol):
    """Gives pictures squeezed to squares; several threads may ask at once."""

    def pictures(self, units: Sequence[ImageUnit]) -> torch.Tensor:
        """Return (B, 3, S, S) uint8; raises `DatasetError` naming a picture that cannot be decoded."""
        ...

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Say which pictures are asked for soon."""
        ...

    def begin_epoch(self) -> None:
        """Say that all pictures are asked for anew."""
        ...


class DecodedPictures:
    """Decodes picture files; the most recently used ones stay in memory, `kept_bytes` of them."""

    def __init__(self, size: int, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.size = size
        self._kept: RecentlyUsed[torch.Tensor] = RecentlyUsed(kept_bytes // (3 * size * size))

    def pictures(self, units: Sequence[ImageUnit]) -> torch.Tensor:
        return torch.stack([self._kept.get(unit.unit_id, partial(self._read, unit)) for unit in units])

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Do nothing: a file is read when it is decoded."""

    def begin_epoch(self) -> None:
        """Do nothing."""

    def _read(self, unit: ImageUnit) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(read_square(unit.path, self.size).transpose(2, 0, 1)))
