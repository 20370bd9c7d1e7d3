"""Files of a remote cache that several readers fetch at once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from advl_pipeline.base.errors import StorageError
from advl_pipeline.base.locations import parse_location
from advl_pipeline.cache.config import DiskCacheConfig
from advl_pipeline.cache.disk_cache import DiskCache
from advl_pipeline.cache.store import FileEntry

NAME, OTHER = "text/tokens/values/c/0/0", "image/tokens/values/c/0/0"
CONTENT = os.urandom(5000)


class OneObject:
    """The part of an object store that reading a shard needs."""

    def __init__(self) -> None:
        self.num_requests = 0

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield the object in two blocks."""
        assert name in (NAME, OTHER)
        self.num_requests += 1
        yield CONTENT[:100]
        yield CONTENT[100:]


def reader(folder: Path, store: OneObject, *, num_files: int = 3) -> DiskCache:
    config = DiskCacheConfig(folder=folder, max_bytes=num_files * len(CONTENT))
    entry = FileEntry(num_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    return DiskCache(
        parse_location("s3://bucket/cache"), store.stream, config, {NAME: entry, OTHER: entry}, key="a-cache"
    )


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
        with reader(tmp_path, store).opened(NAME, release=lambda: None) as descriptor:
            found.append(content_of(descriptor))

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
    with reader(tmp_path, store).opened(NAME, release=lambda: None) as held:
        is_read.set()
        late.join(30)
        assert not late.is_alive()
        assert found == [CONTENT]
        assert content_of(held) == CONTENT
    assert store.num_requests == 1
    assert [path.name for path in (tmp_path / "reading").rglob("*") if path.is_file()] == ["0"]


def test_many_readers_fetch_a_file_once(tmp_path: Path) -> None:
    for number in range(8):
        store, folder = OneObject(), tmp_path / str(number)
        found: list[bytes] = []

        def read(store: OneObject = store, folder: Path = folder, found: list[bytes] = found) -> None:
            with reader(folder, store).opened(NAME, release=lambda: None) as descriptor:
                found.append(content_of(descriptor))

        threads = [threading.Thread(target=read, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [CONTENT] * len(threads)
        assert store.num_requests == 1


def test_who_fetches_ahead_does_not_wait_for_others(tmp_path: Path) -> None:
    """A process whose training has ended must not live on for as long as another one's download takes."""
    store, partial = OneObject(), tmp_path / "reading/a-cache" / f"{NAME}.partial"
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = set(threading.enumerate())
        reader(tmp_path, store).fetch_ahead([NAME])
        for thread in {*threading.enumerate()} - before:
            thread.join(30)
            assert not thread.is_alive()
    assert store.num_requests == 0


def test_nothing_is_let_go_of_before_it_is_mapped(tmp_path: Path) -> None:
    """Asked too early, a reader would have nothing to let go of, and its map would then keep the file for good."""
    files, released = reader(tmp_path, OneObject(), num_files=1), threading.Event()
    found: list[bytes] = []
    maps: list[mmap.mmap] = []

    def release() -> None:
        maps.pop().close()
        released.set()

    def read() -> None:
        with files.opened(OTHER, release=lambda: None) as descriptor:
            found.append(content_of(descriptor))

    second = threading.Thread(target=read, daemon=True)
    with files.opened(NAME, release=release) as held:
        second.start()
        assert not released.wait(0.3)
        maps.append(mmap.mmap(held, 0, access=mmap.ACCESS_READ))
    second.join(30)
    assert released.is_set()
    assert found == [CONTENT]


@pytest.mark.parametrize("damage", ["unreadable", "folder", "cannot go"])
def test_a_copy_that_can_be_neither_used_nor_removed_is_an_error(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, copy = OneObject(), tmp_path / "reading/a-cache" / NAME
    copy.parent.mkdir(parents=True)
    if damage == "folder":
        copy.mkdir()
    else:
        copy.write_bytes(b"damaged")

    def fail(path: Path, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    if damage == "unreadable":
        monkeypatch.setattr("advl_pipeline.cache.disk_cache.hash_file", fail)
    elif damage == "cannot go":
        monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(StorageError, match=copy.name), reader(tmp_path, store).opened(NAME, release=lambda: None):
        pass
    assert store.num_requests == 0
    monkeypatch.undo()
    if damage != "folder":
        with reader(tmp_path, store).opened(NAME, release=lambda: None) as descriptor:
            assert content_of(descriptor) == CONTENT
