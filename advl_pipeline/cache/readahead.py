"""Telling the kernel what is wanted soon, in the way that suits how the store relates to memory.

Shapes: Q units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from advl_pipeline.cache.arrays import MappedArray
from advl_pipeline.cache.token_rows import Positions, TokenRows

_SAMPLED_UNITS = 32


class Readahead:
    """Announcements for one feature store; `num_bytes` is its size on disk."""

    def __init__(self, table: MappedArray, tokens: TokenRows, *, num_units: int, num_bytes: int) -> None:
        self._table = table
        self._tokens = tokens
        self._values = tokens.arrays.get("values")
        self._streamed = [array for name, array in tokens.arrays.items() if name in ("values", "scales")]
        self._num_units = num_units
        self._num_bytes = num_bytes
        self._memory: Literal["holds", "fits", "exceeds"] | None = None

    def begin_epoch(self) -> None:
        """Look anew at how the store relates to memory, and forget what was announced."""
        sample_Q = np.linspace(0, self._num_units - 1, _SAMPLED_UNITS).astype(np.int64)
        if self._values is not None:
            rows_Q, _ = self._tokens.bounds(sample_Q)
            is_held = all(map(self._values.is_resident, np.minimum(rows_Q, len(self._values) - 1).tolist()))
        else:
            is_held = all(map(self._table.is_resident, sample_Q.tolist()))
        fits = 2 * self._num_bytes < available_memory()
        self._memory = "holds" if is_held else "fits" if fits else "exceeds"
        for item in (self._table, *self._tokens.arrays.values()):
            item.forget_announcements()

    def announce(self, positions_Q: Positions) -> None:
        """Announce units.

        Where the whole store fits into free memory, the blocks around the units are announced, large enough to read
        at the disk's full speed: the epoch wants all of them. Otherwise exactly the units are. Nothing is announced
        where a sample of the store was in memory when the epoch began.
        """
        if self._memory is None:
            self.begin_epoch()
        if self._memory == "holds" or not len(positions_Q):
            return
        one_Q = np.ones_like(positions_Q)
        start_Q, length_Q = self._tokens.bounds(positions_Q)
        used = length_Q > 0
        wanted = [(self._table, positions_Q, one_Q)]
        wanted += [(array, start_Q[used], length_Q[used]) for array in self._streamed]
        for array, first_Q, number_Q in wanted:
            if self._memory == "fits":
                array.announce_blocks(first_Q, number_Q)
            else:
                array.announce(first_Q, number_Q)


def available_memory() -> int:
    """Return how many bytes the kernel could give without swapping; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
