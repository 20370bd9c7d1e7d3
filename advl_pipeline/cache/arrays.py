"""Memory-mapped arrays of a cache: shard files mapped when first touched, rows handed out as views."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.files import safe_path
from advl_pipeline.cache.layout import DTYPES, ArraySpec
from advl_pipeline.errors import CorruptCache

Rows = npt.NDArray[Any]

BLOCK_BYTES = 1 << 20
"""What is read ahead at once where a whole epoch fits into memory: large enough for disks to run at full speed."""


class MappedArray:
    """One array of a cache, read-only. Nothing is opened before it is asked for.

    Mapping a shard checks its length and its index first, so a file that was cut short or replaced by another is an
    error and never a bus error or rows of zeros.
    """

    def __init__(self, root: Path, spec: ArraySpec) -> None:
        if not spec.is_plausible():
            raise CorruptCache("An array of the cache has impossible sizes.", where=str(root / spec.path))
        self.spec = spec
        self._root = root
        self._views: dict[int, Rows] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._paths: dict[int, Path] = {}
        self._announced: set[int] = set()

    def __len__(self) -> int:
        return self.spec.shape[0]

    def shard(self, shard: int) -> Rows:
        """Return the rows that a shard file holds, as a view."""
        view = self._views.get(shard)
        return self._map(shard) if view is None else view

    def rows(self, first: int, after: int) -> Rows:
        """Return rows [first, after), which must lie in one shard, as a view."""
        shard, offset = divmod(first, self.spec.shard_rows)
        return self.shard(shard)[offset : offset + after - first]

    def whole(self) -> Rows:
        """Return all rows: a view when the array lies in one shard, else a copy."""
        if self.spec.num_shards == 1:
            return self.shard(0)[: len(self)]
        return np.concatenate(
            [self.shard(shard)[: self.spec.valid_rows(shard)] for shard in range(self.spec.num_shards)]
        )

    def gather(self, positions_Q: npt.NDArray[np.int64]) -> Rows:
        """Return a copy of the rows at the given positions."""
        if self.spec.num_shards == 1:
            return self.shard(0)[positions_Q]
        shard_Q, offset_Q = np.divmod(positions_Q, self.spec.shard_rows)
        gathered = np.empty((len(positions_Q), *self.spec.shape[1:]), DTYPES[self.spec.dtype])
        for shard in np.unique(shard_Q):
            here = shard_Q == shard
            gathered[here] = self.shard(int(shard))[offset_Q[here]]
        return gathered

    def announce(self, first: int, after: int) -> None:
        """Tell the kernel that rows [first, after) of one shard are wanted soon."""
        shard, offset = divmod(first, self.spec.shard_rows)
        self._advise(shard, offset * self.spec.row_bytes, (offset + after - first) * self.spec.row_bytes)

    def announce_blocks(self, first_Q: npt.NDArray[np.int64], after_Q: npt.NDArray[np.int64]) -> None:
        """As `announce` for several stretches of rows, in whole blocks, each of which is told once."""
        shard_Q, offset_Q = np.divmod(first_Q, self.spec.shard_rows)
        row_bytes = self.spec.row_bytes
        begin_Q = offset_Q * row_bytes // BLOCK_BYTES
        end_Q = np.maximum((offset_Q + (after_Q - first_Q)) * row_bytes - 1, 0) // BLOCK_BYTES
        base_Q = shard_Q * self._blocks_per_shard
        for block in np.concatenate([base_Q + begin_Q, base_Q + end_Q]).tolist():
            if block not in self._announced:
                self._announced.add(block)
                shard, number = divmod(block, self._blocks_per_shard)
                self._advise(shard, number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)

    def forget_announcements(self) -> None:
        """Let every block be announced again; what was read may have left memory since."""
        self._announced.clear()

    def is_resident(self, row: int) -> bool:
        """Whether the kernel holds the page that a row begins on; False where it cannot be asked."""
        shard, offset = divmod(row, self.spec.shard_rows)
        self.shard(shard)
        descriptor = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.preadv(descriptor, [bytearray(1)], offset * self.spec.row_bytes, os.RWF_NOWAIT) == 1
        except OSError:
            return False
        finally:
            os.close(descriptor)

    @property
    def _blocks_per_shard(self) -> int:
        return -(-self.spec.shard_rows * self.spec.row_bytes // BLOCK_BYTES)

    def _advise(self, shard: int, begin: int, end: int) -> None:
        self.shard(shard)
        mapped = self._maps[shard]
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(end, len(mapped))
        if begin < end:
            mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def _map(self, shard: int) -> Rows:
        spec, path = self.spec, safe_path(self._root, self.spec.shard_path(shard))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _bad_shard("A shard is missing or cannot be opened.", path, error.strerror or "") from None
        try:
            size = os.fstat(descriptor).st_size
            if size != spec.file_bytes(shard):
                raise _bad_shard(
                    "A shard has the wrong length.", path, f"{size} bytes instead of {spec.file_bytes(shard)}"
                )
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        if mapped[spec.payload_bytes(shard) :] != spec.footer(shard):
            raise _bad_shard("The index of a shard is damaged.", path, "")
        view = np.frombuffer(
            mapped, DTYPES[spec.dtype], count=spec.payload_bytes(shard) // DTYPES[spec.dtype].itemsize
        )
        view = view.reshape(spec.stored_rows(shard), *spec.shape[1:])
        self._views[shard], self._maps[shard], self._paths[shard] = view, mapped, path
        return view


def _bad_shard(what: str, path: Path, why: str) -> CorruptCache:
    return CorruptCache(what, where=str(path), why=why, next_command="advl cache repair CACHE")
