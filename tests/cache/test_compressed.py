"""Compressed arrays give the rows that were written, decode a chunk once while the budget holds, on any threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from advl_pipeline.cache import compressed, disk_cache
from advl_pipeline.cache.compressed import CompressedArray, decoded_budget
from advl_pipeline.cache.compression import compress, decompress_into
from advl_pipeline.cache.config import DiskCacheConfig
from advl_pipeline.cache.disk_cache import DiskCache
from advl_pipeline.cache.files import entry_of
from advl_pipeline.cache.folder_store import FolderStore
from advl_pipeline.cache.layout import ArraySpec
from advl_pipeline.cache.object_store import ObjectStore

SPEC = ArraySpec(path="values", shape=(1500, 24), dtype="float16", shard_rows=512, inner_rows=16, compression="zstd")
NUM_CHUNKS = -(-1500 // 16)


@pytest.fixture
def rows(tmp_path: Path) -> np.ndarray:
    """What is stored below `tmp_path`."""
    rows_MD = np.random.default_rng(0).standard_normal(SPEC.shape).astype(np.float16)
    for shard in range(SPEC.num_shards):
        stored_MD = np.zeros((SPEC.stored_rows(shard), 24), np.float16)
        valid_MD = rows_MD[shard * 512 : (shard + 1) * 512]
        stored_MD[: len(valid_MD)] = valid_MD
        frames = [compress(chunk.reshape(-1).view(np.uint8)) for chunk in stored_MD.reshape(-1, 16, 24)]
        path = tmp_path / SPEC.shard_path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        footer = SPEC.footer(shard, np.array(list(map(len, frames)), np.uint64))
        path.write_bytes(b"".join(frames) + footer)
    return rows_MD


def drawn_stretches(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return first rows and lengths of stretches, each within one shard."""
    generator = np.random.default_rng(seed)
    first_Q = generator.integers(0, 1500, 40)
    end_Q = np.minimum((first_Q // 512 + 1) * 512, 1500)
    return first_Q, np.minimum(generator.integers(0, 90, 40), end_Q - first_Q)


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("kept_chunks", [0, 5, 1000])
def test_rows_are_those_written_and_chunks_are_decoded_once_within_the_budget(
    rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_chunks: int, cores: int
) -> None:
    monkeypatch.setattr(compressed, "num_cores", lambda: cores)
    threads: list[str] = []

    def counted(frame: memoryview, out: np.ndarray) -> None:
        threads.append(threading.current_thread().name)
        decompress_into(frame, out)

    monkeypatch.setattr(compressed, "decompress_into", counted)
    array = CompressedArray(FolderStore(tmp_path), SPEC, kept_bytes=kept_chunks * SPEC.chunk_bytes)
    touched: set[int] = set()
    for seed in range(6):
        first_Q, length_Q = drawn_stretches(seed)
        found = array.stretches(first_Q, length_Q)
        for stretch, first, length in zip(found, first_Q, length_Q, strict=True):
            np.testing.assert_array_equal(stretch, rows[first : first + length])
            touched |= set(range(first // 16, max(first + length - 1, first) // 16 + 1))
    assert len(touched) > NUM_CHUNKS // 2
    assert (len(threads) == len(touched)) == (kept_chunks == 1000)
    assert any(name.startswith("advl-decode") for name in threads) == (cores > 1)
    np.testing.assert_array_equal(array.whole(), rows)


@pytest.mark.parametrize(("available", "mebibytes"), [(0, 128), (8 << 30, 512), (1 << 40, 1024)])
def test_decoded_chunks_take_a_share_of_the_memory_within_bounds(available: int, mebibytes: int) -> None:
    assert decoded_budget(available) == mebibytes << 20


def test_several_threads_read_one_array(rows: np.ndarray, tmp_path: Path) -> None:
    array = CompressedArray(FolderStore(tmp_path), SPEC, kept_bytes=8 * SPEC.chunk_bytes)

    def is_right(seed: int) -> bool:
        first_Q, length_Q = drawn_stretches(seed)
        found = array.stretches(first_Q, length_Q)
        expected = [rows[first : first + length] for first, length in zip(first_Q, length_Q, strict=True)]
        return all(map(np.array_equal, found, expected))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, range(40)))


def test_what_is_kept_cannot_be_written_to(rows: np.ndarray, tmp_path: Path) -> None:
    array = CompressedArray(FolderStore(tmp_path), SPEC)
    (stretch,) = array.stretches(np.array([3]), np.array([5]))
    with pytest.raises(ValueError, match="read-only"):
        stretch[:] = 0


class Remote:
    """The part of an object store that reading shards needs, over a folder."""

    url = "s3://bucket/cache"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stream(self, name: str) -> list[bytes]:
        return [(self.folder / name).read_bytes()]


def test_fetched_shards_are_not_all_needed_at_once(
    rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "_SECONDS_TO_WAIT_FOR_ROOM", 0)
    names = [SPEC.shard_path(shard) for shard in range(SPEC.num_shards)]
    contents = {name: (tmp_path / name).read_bytes() for name in names}
    bound = DiskCacheConfig(folder=tmp_path / "bounded", max_bytes=max(map(len, contents.values())))
    store = DiskCache(cast(ObjectStore, Remote(tmp_path)), bound, key="a-cache")
    store.expect({name: entry_of(content) for name, content in contents.items()})
    first_Q = np.arange(0, 1500, 100)
    found = CompressedArray(store, SPEC).stretches(first_Q, np.full(len(first_Q), 10))
    np.testing.assert_array_equal(np.concatenate(found), rows[(first_Q[:, None] + np.arange(10)).ravel()])
