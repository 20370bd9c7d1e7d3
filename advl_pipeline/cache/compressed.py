"""Compressed arrays of a cache: inner chunks decoded on several threads, each kept while a budget allows.

Shapes: Q units asked for, C inner chunks of a shard.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np

from advl_pipeline.cache.arrays import CacheArray, MappedArray, Positions, Rows
from advl_pipeline.cache.compression import decompress_into
from advl_pipeline.cache.layout import ABSENT_CHUNK, DTYPES, ArraySpec
from advl_pipeline.cache.readahead import available_memory
from advl_pipeline.cache.store import Readable
from advl_pipeline.compute import num_cores

_KEPT_SHARE = 16
_LEAST_KEPT, _MOST_KEPT = 128 << 20, 1 << 30

_MAX_THREADS = 8
_CHUNKS_PER_THREAD = 4
"""Fewer are not worth a thread."""

_Chunk = tuple[int, int]


def decoded_budget(available: int) -> int:
    """Return how many bytes of an array's decoded chunks are kept, given those of memory that are available.

    A small cache is decoded once, of a large one the last chunks are kept.
    """
    return min(max(available // _KEPT_SHARE, _LEAST_KEPT), _MOST_KEPT)


class CompressedArray(CacheArray):
    """A compressed array: the inner chunks that hold the rows are decoded.

    `kept_bytes` bounds the decoded chunks that are kept [default: `decoded_budget`].
    """

    def __init__(self, store: Readable, spec: ArraySpec, *, kept_bytes: int | None = None) -> None:
        super().__init__(store, spec)
        self._chunk_ends: dict[int, Positions] = {}
        self._kept: OrderedDict[_Chunk, Rows] = OrderedDict()
        budget = decoded_budget(available_memory()) if kept_bytes is None else kept_bytes
        self._max_kept = budget // spec.chunk_bytes
        self._lock = threading.Lock()

    def shard(self, shard: int) -> Rows:
        """Return the rows that a shard file holds, decoded."""
        chunks = [(shard, chunk) for chunk in range(self.spec.stored_chunks(shard))]
        decoded = self._decode(chunks)
        return np.concatenate([decoded[chunk] for chunk in chunks])

    def stretches(self, first_Q: Positions, length_Q: Positions) -> list[Rows]:
        """As the base says; decoded."""
        inner_rows = self.spec.inner_rows
        shard_Q, offset_Q = np.divmod(first_Q, self.spec.shard_rows)
        last_Q = np.maximum(offset_Q + length_Q - 1, offset_Q)
        chunks_of = [
            [(shard, chunk) for chunk in range(first, last + 1)]
            for shard, first, last in zip(
                shard_Q.tolist(), (offset_Q // inner_rows).tolist(), (last_Q // inner_rows).tolist(), strict=True
            )
        ]
        decoded = self._chunks(list(dict.fromkeys(chunk for chunks in chunks_of for chunk in chunks)))
        skipped_Q = offset_Q % inner_rows
        bounds = zip(skipped_Q.tolist(), (skipped_Q + length_Q).tolist(), strict=True)
        return [
            _rows([decoded[chunk] for chunk in chunks], first, after)
            for chunks, (first, after) in zip(chunks_of, bounds, strict=True)
        ]

    def _chunks(self, wanted: Sequence[_Chunk]) -> dict[_Chunk, Rows]:
        """Return decoded chunks, those that are kept as they are."""
        with self._lock:
            found = {chunk: self._kept[chunk] for chunk in wanted if chunk in self._kept}
        decoded = self._decode(sorted(chunk for chunk in wanted if chunk not in found))
        with self._lock:
            for chunk, rows in (found | decoded).items():
                self._kept[chunk] = rows
                self._kept.move_to_end(chunk)
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
        return found | decoded

    def _decode(self, chunks: Sequence[_Chunk]) -> dict[_Chunk, Rows]:
        # Files are mapped here, shard by shard, as those of a remote cache come and go.
        frames = {chunk: self._frame(*chunk) for chunk in chunks}
        num_threads = min(num_cores(), _MAX_THREADS, len(chunks) // _CHUNKS_PER_THREAD)
        if num_threads < 2:
            return self._decode_frames(frames)
        shares = [{chunk: frames[chunk] for chunk in chunks[first::num_threads]} for first in range(num_threads)]
        decoded: dict[_Chunk, Rows] = {}
        # Threads of their own for each call live in any process, forked ones too.
        with ThreadPoolExecutor(num_threads, "advl-decode") as pool:
            for share in pool.map(self._decode_frames, shares):
                decoded |= share
        return decoded

    def _decode_frames(self, frames: Mapping[_Chunk, bytes | memoryview]) -> dict[_Chunk, Rows]:
        shape, dtype = (self.spec.inner_rows, *self.spec.shape[1:]), DTYPES[self.spec.dtype]
        decoded: dict[_Chunk, Rows] = {}
        for (shard, chunk), frame in frames.items():
            decoded[shard, chunk] = rows = np.empty(shape, dtype)
            try:
                decompress_into(frame, rows.reshape(-1).view(np.uint8))
            except ValueError as error:
                raise self._bad_shard("A compressed chunk is damaged.", shard, str(error)) from None
            rows.flags.writeable = False  # It is kept, and views of it are handed out.
        return decoded

    def _frame(self, shard: int, chunk: int) -> bytes | memoryview:
        mapped, ends_C1 = self._map(shard), self._chunk_ends[shard]
        place = slice(int(ends_C1[chunk]), int(ends_C1[chunk + 1]))
        # A view would keep a fetched file here until the last frame is decoded.
        return mapped[place] if self._store.reads_whole else memoryview(mapped)[place]

    def _bytes_of(self, shard: int, first_Q: Positions, after_Q: Positions) -> tuple[Positions, Positions]:
        ends_C1 = self._chunk_ends[shard]
        last_Q = np.maximum(after_Q - 1, first_Q) // self.spec.inner_rows
        return ends_C1[first_Q // self.spec.inner_rows], ends_C1[last_Q + 1]

    def _accept(self, shard: int, mapped: mmap.mmap) -> None:
        spec = self.spec
        payload = len(mapped) - spec.footer_bytes
        footer = mapped[payload:]
        index_C2 = np.frombuffer(footer[:-4], "<u8").reshape(-1, 2)
        present = spec.stored_chunks(shard)
        lengths_C = index_C2[:present, 1]
        sound = (
            int(google_crc32c.value(footer[:-4])) == int.from_bytes(footer[-4:], "little")
            and (index_C2[present:] == ABSENT_CHUNK).all()
            and (lengths_C <= payload).all()
            and int(lengths_C.sum()) == payload
            and footer == spec.footer(shard, lengths_C)
        )
        if not sound:
            raise self._bad_shard("The index of a shard is damaged.", shard, "")
        self._chunk_ends[shard] = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_C.astype(np.int64))])


def open_array(store: Readable, spec: ArraySpec) -> CacheArray:
    """Return the array that a layout describes."""
    return (MappedArray if spec.compression == "none" else CompressedArray)(store, spec)


def _rows(chunks: Sequence[Rows], first: int, after: int) -> Rows:
    """Return rows [first, after) of chunks that follow one another: a view where one chunk holds them."""
    if len(chunks) == 1:
        return chunks[0][first:after]
    before = sum(map(len, chunks[:-1]))
    return np.concatenate([chunks[0][first:], *chunks[1:-1], chunks[-1][: after - before]])
