"""Where a student over pixels has its pictures from: decoded when asked for, or what was decoded before.

Shapes: B pictures, S side in pixels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch

from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.records import ImageUnit

Item = TypeVar("Item")


class RecentlyUsed(Generic[Item]):
    """Items by name, the least recently used out first; `max_items` are kept."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._kept: OrderedDict[str, Item] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], Item]) -> Item:
        """Return the item of a name, made if it is not kept; threads that ask for one at once may each make it."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        item = make()
        with self._lock:
            self._kept[name] = item
            if len(self._kept) > self._max_items:
                self._kept.popitem(last=False)
        return item

    def __reduce__(self) -> tuple[object, ...]:
        # A lock does not travel between processes, nor need what can be made again.
        return RecentlyUsed, (self._max_items,)


KEPT_BYTES = 256 << 20


class DecodedPictures:
    """Decodes picture files and squeezes them to squares; several threads may ask at once.

    The most recently used ones stay in memory, `kept_bytes` of them.
    """

    def __init__(self, size: int, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.size = size
        self._kept: RecentlyUsed[torch.Tensor] = RecentlyUsed(kept_bytes // (3 * size * size))

    def pictures(self, units: Sequence[ImageUnit]) -> torch.Tensor:
        """Return (B, 3, S, S) uint8; raises `DatasetError` naming a picture that cannot be decoded."""
        return torch.stack([self._kept.get(unit.unit_id, partial(self._read, unit)) for unit in units])

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Hear which pictures are asked for soon; a file is read when it is decoded."""

    def begin_epoch(self) -> None:
        """Hear that all pictures are asked for anew."""

    def _read(self, unit: ImageUnit) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(read_square(unit.path, self.size).transpose(2, 0, 1)))
