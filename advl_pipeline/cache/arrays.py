"""Memory-mapped arrays of a cache: shard files mapped when first touched, rows handed out as views.

Shapes: Q units asked for.
"""

from __future__ import annotations

import mmap
import os
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.layout import DTYPES, ArraySpec
from advl_pipeline.cache.store import Readable

Rows = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]

BLOCK_BYTES = 1 << 20
"""What is read ahead at once where a whole epoch fits into memory: large enough for disks to run at full speed."""

_BLOCKS_PER_SHARD = 1 << 17


class MappedArray:
    """One array of a cache, read-only: a shard's payload is one block of rows, and rows are views of it.

    Nothing is opened before it is asked for. Mapping a shard checks its length and its index first, so a file that
    was cut short is an error and never a bus error or rows of zeros. Whether it is the file that was written,
    `trust.require_trustworthy` and `verify` say.
    """

    def __init__(self, store: Readable, spec: ArraySpec) -> None:
        if not spec.is_plausible():
            raise store.damaged("An array of the cache has impossible sizes.", spec.path)
        self.spec = spec
        self._store = store
        self._maps: dict[int, mmap.mmap] = {}
        self._views: dict[int, Rows] = {}
        self._announced: set[int] = set()

    def __len__(self) -> int:
        return self.spec.shape[0]

    def shard(self, shard: int) -> Rows:
        """Return the rows that a shard file holds, as a view."""
        while (view := self._views.get(shard)) is None:
            self._map(shard)
        return view

    def stretches(self, first_Q: Positions, length_Q: Positions) -> list[Rows]:
        """Return rows [first, first + length) for each pair, each within a shard; copies where files come and go."""
        if self._store.reads_whole:
            return self._copies(first_Q, length_Q)
        shard_Q, offset_Q = np.divmod(first_Q, self.spec.shard_rows)
        views = {shard: self.shard(shard) for shard in set(shard_Q.tolist())}
        return [
            views[shard][first:after]
            for shard, first, after in zip(
                shard_Q.tolist(), offset_Q.tolist(), (offset_Q + length_Q).tolist(), strict=True
            )
        ]

    def _copies(self, first_Q: Positions, length_Q: Positions) -> list[Rows]:
        # Shard by shard, and no view kept, so that no more than one file has to be here at once.
        shard_Q, offset_Q = np.divmod(first_Q, self.spec.shard_rows)
        copies: dict[int, Rows] = {}
        for place in np.argsort(shard_Q, kind="stable").tolist():
            first = int(offset_Q[place])
            copies[place] = self.shard(int(shard_Q[place]))[first : first + int(length_Q[place])].copy()
        return [copies[place] for place in range(len(copies))]

    def gather(self, positions_Q: Positions) -> Rows:
        """Return a copy of the rows at the given positions."""
        if self.spec.num_shards == 1:
            return self.shard(0)[positions_Q]
        shard_Q, offset_Q = np.divmod(positions_Q, self.spec.shard_rows)
        gathered = np.empty((len(positions_Q), *self.spec.shape[1:]), DTYPES[self.spec.dtype])
        for shard in np.unique(shard_Q):
            here = shard_Q == shard
            gathered[here] = self.shard(int(shard))[offset_Q[here]]
        return gathered

    def whole(self) -> Rows:
        """Return all rows: a view when the array lies in one shard, else a copy."""
        if self.spec.num_shards == 1:
            return self.shard(0)[: len(self)]
        return np.concatenate(
            [self.shard(shard)[: self.spec.valid_rows(shard)] for shard in range(self.spec.num_shards)]
        )

    def announce(self, first_Q: Positions, length_Q: Positions) -> None:
        """Tell the kernel that exactly these stretches of rows are wanted soon."""
        shard_Q = first_Q // self.spec.shard_rows
        for shard in np.unique(shard_Q).tolist():
            here = shard_Q == shard
            for begin, end in zip(*self._stretch_bytes(shard, first_Q[here], length_Q[here]), strict=True):
                self._advise(shard, begin, end)

    def announce_blocks(self, first_Q: Positions, length_Q: Positions) -> None:
        """As `announce`, in whole blocks, each of which is told once."""
        shard_Q = first_Q // self.spec.shard_rows
        for shard in np.unique(shard_Q).tolist():
            here = shard_Q == shard
            for begin, end in zip(*self._stretch_bytes(shard, first_Q[here], length_Q[here]), strict=True):
                for number in range(begin // BLOCK_BYTES, max(end - 1, begin) // BLOCK_BYTES + 1):
                    if (key := shard * _BLOCKS_PER_SHARD + number) not in self._announced:
                        self._announced.add(key)
                        self._advise(shard, number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)

    def forget_announcements(self) -> None:
        """Let every block be announced again; what was read may have left memory since."""
        self._announced.clear()

    def is_resident(self, row: int) -> bool:
        """Whether the kernel holds the page that a row begins on; False where it cannot be asked."""
        if self._store.reads_whole:
            return True  # Looking would fetch it.
        shard = row // self.spec.shard_rows
        begin_Q, _ = self._stretch_bytes(shard, np.array([row]), np.array([1]))
        with self._store.opened(self.spec.shard_path(shard)) as descriptor:
            try:
                return os.preadv(descriptor, [bytearray(1)], begin_Q[0], os.RWF_NOWAIT) == 1
            except OSError:
                return False

    def _stretch_bytes(self, shard: int, first_Q: Positions, length_Q: Positions) -> tuple[list[int], list[int]]:
        self._map(shard)
        begin_Q = (first_Q - shard * self.spec.shard_rows) * self.spec.row_bytes
        return begin_Q.tolist(), (begin_Q + length_Q * self.spec.row_bytes).tolist()

    def _advise(self, shard: int, begin: int, end: int) -> None:
        mapped = self._maps[shard]
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(end, len(mapped))
        if begin < end:
            mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def _map(self, shard: int) -> mmap.mmap:
        if (mapped := self._maps.get(shard)) is not None:
            return mapped
        name = self.spec.shard_path(shard)
        with self._store.opened(name, release=partial(self.forget, shard)) as descriptor:
            return self.map_shard(shard, descriptor)

    def map_shard(self, shard: int, descriptor: int) -> mmap.mmap:
        """Take a shard from a file that is open already; raises `CorruptCache`."""
        spec, size = self.spec, os.fstat(descriptor).st_size
        if size != spec.file_bytes(shard):
            raise self._store.damaged(
                "A shard has the wrong length.",
                spec.shard_path(shard),
                f"{size} bytes instead of {spec.file_bytes(shard)}",
            )
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        if mapped[spec.payload_bytes(shard) :] != spec.footer(shard):
            raise self._store.damaged("The index of a shard is damaged.", spec.shard_path(shard))
        count = spec.payload_bytes(shard) // DTYPES[spec.dtype].itemsize
        view = np.frombuffer(mapped, DTYPES[spec.dtype], count=count)
        self._views[shard] = view.reshape(spec.stored_rows(shard), *spec.shape[1:])
        self._maps[shard] = mapped
        return mapped

    def forget(self, shard: int) -> None:
        """Let go of a mapped file; what was handed out of it stays valid."""
        self._views.pop(shard, None)
        self._maps.pop(shard, None)
