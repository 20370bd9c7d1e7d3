"""Files of a remote cache that several readers fetch at once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from advl_pipeline.cache.disk_cache import DiskCache
from advl_pipeline.cache.disk_cache_config import DiskCacheConfig
from advl_pipeline.cache.files import FileEntry
from advl_pipeline.cache.object_store import ObjectStore

NAME = "text/tokens/values/c/0/0"
CONTENT = os.urandom(5000)


class OneObject:
    """The part of an object store that reading a shard needs."""

    url = "s3://bucket/cache"

    def __init__(self) -> None:
        self.num_requests = 0

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield the object in two blocks."""
        assert name == NAME
        self.num_requests += 1
        yield CONTENT[:100]
        yield CONTENT[100:]


def reader(folder: Path, store: OneObject) -> DiskCache:
    files = DiskCache(
        cast(ObjectStore, store), DiskCacheConfig(folder=folder, max_bytes=3 * len(CONTENT)), key="a-cache"
    )
    entry = FileEntry(num_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    files.expect({NAME: entry})
    return files


def content_of(descriptor: int) -> bytes:
    return os.pread(descriptor, len(CONTENT) + 1, 0)


def test_a_fetch_that_comes_late_does_not_wait_until_readers_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that opened the partial copy before it got its name must not wait for the lock that readers hold on it."""
    open_file = os.open
    opened, is_read = threading.Event(), threading.Event()
    found: list[bytes] = []

    def read() -> None:
        found.append(content_of(reader(tmp_path, store).open(NAME, release=lambda: None)))

    def open_late(path: Any, *options: Any) -> int:
        descriptor = open_file(path, *options)
        if str(path).endswith(".partial") and threading.current_thread() is late and not opened.is_set():
            opened.set()
            assert is_read.wait(30)
        return descriptor

    store = OneObject()
    late = threading.Thread(target=read, daemon=True)
    monkeypatch.setattr(os, "open", open_late)
    late.start()
    assert opened.wait(30)
    held = reader(tmp_path, store).open(NAME, release=lambda: None)
    is_read.set()
    late.join(30)
    assert not late.is_alive()
    assert found == [CONTENT]
    assert content_of(held) == CONTENT
    assert store.num_requests == 1
    assert [path.name for path in (tmp_path / "reading").rglob("*") if path.is_file()] == ["0"]


def test_many_readers_fetch_a_file_once(tmp_path: Path) -> None:
    for number in range(30):
        store, folder = OneObject(), tmp_path / str(number)
        found: list[bytes] = []

        def read(store: OneObject = store, folder: Path = folder, found: list[bytes] = found) -> None:
            found.append(content_of(reader(folder, store).open(NAME, release=lambda: None)))

        threads = [threading.Thread(target=read, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [CONTENT] * len(threads)
        assert store.num_requests == 1
