"""Memory-mapped arrays of a cache: shard files are mapped on first use, rows are returned as views.

Units are looked up by id in an index of sorted 64-bit prefixes and unit positions, which is searched in place.

Shapes: N units, U of them readable, Q requested units or ids, M token rows.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import CorruptCache
from advl_pipeline.cache.layout import DTYPES, ID_BYTES, ArraySpec
from advl_pipeline.cache.store import Readable

BLOCK_BYTES = 1 << 20
"""Read-ahead block if an entire epoch fits into memory: large enough for a disk's full speed."""

Rows = npt.NDArray[Any]

Positions = npt.NDArray[np.int64]


class MappedArray:
    """One array of a cache, read-only: a shard's payload is one block of rows, and rows are views of it.

    Shards are opened on demand. Mapping a shard first checks its length and its index, so a truncated file raises an
    error and never gives a bus error or rows of zeros. `verify` checks that it is the file that was written.
    """

    def __init__(self, store: Readable, spec: ArraySpec) -> None:
        if not spec.is_plausible():
            raise store.damaged("An array of the cache has impossible sizes.", spec.path)
        self.spec = spec
        self._store = store
        self._shards: dict[int, tuple[mmap.mmap, Rows]] = {}
        self.announced: set[tuple[int, int]] = set()
        """Blocks, by shard and number, that were announced to the kernel; cleared when they may have left memory."""
        self.was_read = False
        """Whether rows were requested."""

    def __len__(self) -> int:
        return self.spec.shape[0]

    def shard(self, shard: int) -> Rows:
        """Return the rows of a shard file, as a view."""
        self.was_read = True
        return self._open(shard)[1]

    def stretches(self, first_Q: Positions, length_Q: Positions) -> list[Rows]:
        """Return rows [first, first + length) per pair, each within a shard, as views."""
        shard_Q, offset_Q = np.divmod(first_Q, self.spec.shard_rows)
        shards, firsts, afters = shard_Q.tolist(), offset_Q.tolist(), (offset_Q + length_Q).tolist()
        stretches: dict[int, Rows] = {}
        current, rows = -1, None
        for place in np.argsort(shard_Q, kind="stable").tolist():
            if rows is None or shards[place] != current:
                current, rows = shards[place], self.shard(shards[place])
            stretches[place] = rows[firsts[place] : afters[place]]
        return [stretches[place] for place in range(len(stretches))]

    def padded(self, first_Q: Positions, length_Q: Positions) -> Rows:
        """Return a copy of the stretches, padded with zeros to the longest, (Q, longest, ...)."""
        stretches = self.stretches(first_Q, length_Q)
        longest = int(length_Q.max(initial=0))
        # Only the padding is zeroed: the rest is written once.
        padded = np.empty((len(stretches), longest, *self.spec.shape[1:]), DTYPES[self.spec.dtype])
        for rows, stretch in zip(padded, stretches, strict=True):
            rows[: len(stretch)] = stretch
            rows[len(stretch) :] = 0
        return padded

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
        """Return all rows: a view if the array has one shard, else a copy."""
        if self.spec.num_shards == 1:
            return self.shard(0)[: len(self)]
        return np.concatenate(
            [self.shard(shard)[: self.spec.valid_rows(shard)] for shard in range(self.spec.num_shards)]
        )

    def announce(self, first_Q: Positions, length_Q: Positions, *, in_blocks: bool) -> None:
        """Announce ranges of rows to the kernel: exactly these, or entire blocks, each once."""
        shard_Q = first_Q // self.spec.shard_rows
        for shard in np.unique(shard_Q).tolist():
            here = shard_Q == shard
            for begin, end in zip(*self._stretch_bytes(shard, first_Q[here], length_Q[here]), strict=True):
                if not in_blocks:
                    self._advise(shard, begin, end)
                    continue
                for number in range(begin // BLOCK_BYTES, max(end - 1, begin) // BLOCK_BYTES + 1):
                    if (shard, number) not in self.announced:
                        self.announced.add((shard, number))
                        self._advise(shard, number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)

    def is_resident(self, row: int) -> bool:
        """Return whether the page on which a row begins is in memory; False if this is unknown."""
        if self._store.is_disk_cache:
            return True  # A check would fetch the file.
        shard = row // self.spec.shard_rows
        begin_Q, _ = self._stretch_bytes(shard, np.array([row]), np.array([1]))
        with self._store.opened(self.spec.shard_path(shard)) as descriptor:
            try:
                return os.preadv(descriptor, [bytearray(1)], begin_Q[0], os.RWF_NOWAIT) == 1
            except OSError:
                return False

    def _stretch_bytes(self, shard: int, first_Q: Positions, length_Q: Positions) -> tuple[list[int], list[int]]:
        begin_Q = (first_Q - shard * self.spec.shard_rows) * self.spec.row_bytes
        return begin_Q.tolist(), (begin_Q + length_Q * self.spec.row_bytes).tolist()

    def _advise(self, shard: int, begin: int, end: int) -> None:
        mapped, _ = self._open(shard)
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(end, len(mapped))
        if begin < end:
            mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def _open(self, shard: int) -> tuple[mmap.mmap, Rows]:
        opened = self._shards.get(shard)
        if opened is not None and opened[0].size() != len(opened[0]):
            # Reading beyond the end of a mapped file would end the process by a signal.
            raise self._store.damaged(
                "A shard changed its length while the cache was open.",
                self.spec.shard_path(shard),
                f"{opened[0].size()} bytes instead of {len(opened[0])}",
            )
        if opened is None:
            with self._store.opened(self.spec.shard_path(shard)) as descriptor:
                opened = self.mapped(shard, descriptor)
            self._shards[shard] = opened
        return opened

    def mapped(self, shard: int, descriptor: int) -> tuple[mmap.mmap, Rows]:
        """Map an open shard file; return the map and its rows. Raises `CorruptCache`."""
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
        return mapped, view.reshape(spec.stored_rows(shard), *spec.shape[1:])


def are_spans(rows_M2: Rows) -> bool:
    """Return whether all rows are [start, end) with 0 <= start <= end."""
    return bool((rows_M2[:, 0] >= 0).all() and (np.diff(rows_M2, axis=1) >= 0).all())


def ids_to_bytes(ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Turn Q hexadecimal ids of 32 digits into a (Q, 16) uint8 array; raises `ValueError` for any other string."""
    if any(len(unit_id) != 2 * ID_BYTES for unit_id in ids):
        raise ValueError("a unit id has 32 hexadecimal digits")
    return np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(len(ids), ID_BYTES)


def build_index(
    unit_ids_N16: npt.NDArray[np.uint8], readable_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return (prefix_U, unit_U): first 8 bytes of each readable id, big-endian, ascending; the unit's position."""
    prefix_N = _prefixes(unit_ids_N16)
    order = np.argsort(prefix_N, kind="stable")
    unit_U = order[readable_N[order]].astype(np.int64)
    return prefix_N[unit_U].astype("<u8"), unit_U


def look_up(
    wanted_Q16: npt.NDArray[np.uint8],
    unit_ids_N16: npt.NDArray[np.uint8],
    prefix_U: npt.NDArray[np.uint64],
    unit_U: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the position of each wanted id among the units, -1 if it is missing."""
    prefix_Q = _prefixes(wanted_Q16)
    slot_Q = np.searchsorted(prefix_U, prefix_Q)
    slot_Q[slot_Q == len(prefix_U)] = len(prefix_U) - 1
    unit_Q = unit_U[slot_Q]
    if unit_Q.min() < 0 or unit_Q.max() >= len(unit_ids_N16):
        raise CorruptCache("The index of the cache points past its end.")
    same_Q = (unit_ids_N16[unit_Q] == wanted_Q16).all(axis=1)
    for query in np.flatnonzero(~same_Q & (prefix_U[slot_Q] == prefix_Q)):
        # Ids that share 64 bits are next to one another.
        slot = int(slot_Q[query]) + 1
        while slot < len(prefix_U) and prefix_U[slot] == prefix_Q[query]:
            if (unit_ids_N16[unit_U[slot] : unit_U[slot] + 1] == wanted_Q16[query]).all(axis=1).any():
                unit_Q[query], same_Q[query] = unit_U[slot], True
                break
            slot += 1
    return np.where(same_Q, unit_Q, -1)


class UnitIds(Sequence[str]):
    """The ids of the readable units in the order of the store, each decoded on access."""

    def __init__(self, unit_ids_N16: npt.NDArray[np.uint8], position_U: npt.NDArray[np.int64] | None) -> None:
        self._unit_ids_N16 = unit_ids_N16
        self._position_U = position_U

    def __len__(self) -> int:
        return len(self._unit_ids_N16 if self._position_U is None else self._position_U)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index if self._position_U is None else self._position_U[index]
        unit_id: str = self._unit_ids_N16[position].tobytes().hex()
        return unit_id

    def __iter__(self) -> Iterator[str]:
        return (self[position] for position in range(len(self)))


def _prefixes(ids_Q16: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(ids_Q16[:, :8]).view(">u8")[:, 0].astype(np.uint64)
