"""Memory that batches are written into again and again: fresh pages cost the kernel as much as the copy itself."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDED_TO = 1 << 20


class BufferPool:
    """Hands out arrays whose memory is taken again once nobody holds them, or anything that views them.

    Every array handed out is a view, and a view (a torch tensor made from it included) keeps a reference to the
    memory that it looks at. So memory is free exactly when its reference count says that only the pool holds it.
    """

    def __init__(self) -> None:
        self._buffers: list[npt.NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        # How the interpreter counts what nobody but the list holds differs between versions.
        self._idle_count = self._count(0)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an uninitialised array; whoever gets it may keep it as long as they like."""
        size = math.prod(shape) * dtype.itemsize
        return self._take(size)[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        idle = [number for number in range(len(self._buffers)) if self._count(number) == self._idle_count]
        for number in idle:
            if self._buffers[number].nbytes >= size:
                return self._buffers[number]
        # Too small ones make room: after a few batches all buffers are as large as the largest batch.
        for number in reversed(idle):
            del self._buffers[number]
        self._buffers.append(np.empty(-(-max(1, size) // _ROUNDED_TO) * _ROUNDED_TO, np.uint8))
        return self._buffers[-1]

    def _count(self, number: int) -> int:
        return sys.getrefcount(self._buffers[number])
