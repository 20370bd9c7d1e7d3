"""Files of a remote cache that several readers fetch at once, are kept, and are fetched ahead."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from objects import wait_for_fetches

from advl_pipeline.base.errors import CorruptCache, StorageError
from advl_pipeline.base.locations import parse_location
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.cache.disk_cache import DiskCache
from advl_pipeline.cache.store import FileEntry

NAMES = [f"text/tokens/values/c/{number}/0" for number in range(40)]
CONTENT = os.urandom(5000)


class Objects:
    """The part of an object store that reading shards needs: it keeps count, and `gate` holds every request up."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bad: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield an object in two blocks."""
        self.asked.append(name)
        yield CONTENT[:100]
        assert self.gate.wait(30)
        yield b"damaged" if name in self.bad else CONTENT[100:]


def reader(folder: Path, objects: Objects) -> DiskCache:
    entry = FileEntry(num_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    location = parse_location("s3://bucket/cache")
    return DiskCache(location, objects.stream, folder, dict.fromkeys(NAMES, entry), key="a-cache")


def leave_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let the disk have this much free space."""
    usage = shutil.disk_usage("/")._replace(free=num_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def read(files: DiskCache, name: str = NAMES[0]) -> bytes:
    with files.opened(name) as descriptor:
        return os.pread(descriptor, len(CONTENT) + 1, 0)


def kept(folder: Path) -> list[str]:
    root = folder / "reading/a-cache"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_many_readers_fetch_a_file_once(tmp_path: Path) -> None:
    for number in range(8):
        objects, folder = Objects(), tmp_path / str(number)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(read, [reader(folder, objects) for _ in range(6)]))
        assert found == [CONTENT] * 6
        assert objects.asked == NAMES[:1]
        assert kept(folder) == NAMES[:1]


def test_a_file_without_room_is_refused_with_sizes_and_fetched_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = reader(tmp_path, Objects())
    assert read(files) == CONTENT
    leave_free(monkeypatch, len(CONTENT) - 1)
    assert read(files) == CONTENT
    with pytest.raises(StorageError, match="no room") as refused:
        read(files, NAMES[1])
    assert "the cache has 0.00 GB" in refused.value.why
    assert "ADVL_DISK_CACHE" in str(refused.value.next_command)
    assert kept(tmp_path) == NAMES[:1]
    leave_free(monkeypatch, len(CONTENT))
    assert read(files, NAMES[1]) == CONTENT


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    part = tmp_path / "reading/a-cache" / f"{NAMES[0]}.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    assert read(reader(tmp_path, Objects())) == CONTENT
    assert kept(tmp_path) == NAMES[:1]


@pytest.mark.parametrize("damage", ["unreadable", "folder", "cannot go"])
def test_a_copy_that_can_be_neither_used_nor_removed_is_an_error(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, copy = Objects(), tmp_path / "reading/a-cache" / NAMES[0]
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
    with pytest.raises(StorageError, match=copy.name):
        read(reader(tmp_path, objects))
    assert objects.asked == []
    monkeypatch.undo()
    if damage != "folder":
        assert read(reader(tmp_path, objects)) == CONTENT


def test_a_few_are_fetched_ahead_at_once_in_the_order_of_need(tmp_path: Path) -> None:
    objects = Objects()
    objects.gate.clear()
    files = reader(tmp_path, objects)
    # A process whose training has ended must not live on for as long as another one's download takes.
    with process_lock(files.root / f"{NAMES[0]}.lock", "this file"):
        files.fetch_ahead(NAMES)
        deadline = time.monotonic() + 10
        while len(objects.asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sorted(objects.asked) == sorted(NAMES[1:5])
        objects.gate.set()
        wait_for_fetches()
    files.fetch_ahead(NAMES)
    assert sorted(objects.asked) == sorted(NAMES[1:])
    assert read(files) == CONTENT


@pytest.mark.parametrize("cause", ["damage", "no room"])
def test_what_goes_wrong_ahead_ends_it_and_is_left_to_whoever_reads(
    tmp_path: Path, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects()
    objects.bad |= set(NAMES)
    if cause == "no room":
        leave_free(monkeypatch, 0)
    files = reader(tmp_path, objects)
    for names in (NAMES[:1], NAMES[1:2], NAMES[2:]):
        files.fetch_ahead(names)
        wait_for_fetches()
    assert objects.asked == (NAMES[:1] if cause == "damage" else [])
    with pytest.raises(CorruptCache if cause == "damage" else StorageError):
        read(files)
