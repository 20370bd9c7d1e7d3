"""A local folder of bounded size for files of remote caches; finetuning reads remote caches through it.

Several processes may share one folder. One of them fetches a file under a lock and checks it during the download
against the digest in the cache's commit record. Every other process checks it when it first opens it. The least
recently opened files are evicted first; a process with an evicted file open can still read it. The size limit covers
everything in the folder, including downloads in progress. Files needed soon are prefetched, a few at a time, in the
order of need, and only into free space.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from advl_pipeline.base.atomic import partial_beside, writing
from advl_pipeline.base.errors import AdvlError, InUse, StorageError
from advl_pipeline.base.locations import Location
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.cache.store import (
    Buffer,
    FileEntry,
    Files,
    MissingFile,
    Readable,
    content_problem,
    hash_file,
    safe_path,
)

_DAMAGED = "A file of the cache is damaged."
_LOCK = ".lock"
_SECONDS_TO_WAIT_FOR_ROOM = 30.0
_SECONDS_BETWEEN_LOOKS = 0.1
_CONNECTIONS = 4
"""Parallel downloads: one connection to an object store uses only part of the bandwidth."""

Stream = Callable[[str], Iterator[Buffer]]


class DiskCache(Readable):
    """The files of one remote cache in the folder.

    Args:
        stream: yields the content of a file in blocks; raises `MissingFile`.
        files: the entries in the cache's commit record; no other file can be opened.
        key: identifies the content of the cache, such as the digest of its complete record.
        max_bytes: size limit of the files of all remote caches in the folder.
    """

    is_disk_cache = True

    def __init__(
        self, location: Location, stream: Stream, folder: Path, files: Files, *, key: str, max_bytes: int
    ) -> None:
        self.location = location
        self._folder = folder
        self.root = self._folder / "reading" / key
        self._files = files
        self._stream = stream
        self._max_bytes = max_bytes
        self._verified: set[tuple[int, int, int]] = set()
        self._opened_ns = time.time_ns()
        self._requested: set[str] = set()
        self._ahead: deque[str] = deque()
        self._num_threads = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes:
        """As `Readable.get`, for a file checked against the commit record; it stays in the folder."""
        with self.opened(name) as descriptor:
            return os.pread(descriptor, self._files[name].num_bytes, 0)

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """As `Readable.opened`."""
        if name not in self._files:
            raise self.damaged(_DAMAGED, name, "its commit record does not list it")
        descriptor = self._open_sound(name)
        try:
            # Eviction uses the access time, which most file systems update rarely, so set it explicitly.
            with suppress(OSError):
                os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_sound(self, name: str) -> int:
        path = safe_path(self.root, name)
        while True:
            with writing(path), ExitStack() as stack:
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except FileNotFoundError:
                    self._fetch(name)
                    continue
                stack.callback(os.close, descriptor)
                key = _key_of(os.fstat(descriptor))
                if key in self._verified or hash_file(descriptor) == self._files[name]:
                    self._verified.add(key)
                    stack.pop_all()
                    return descriptor
                # The local copy is damaged; fetch it again.
                path.unlink(missing_ok=True)

    def _fetch(self, name: str, *, free_room_only: bool = False) -> bool:
        """Fetch a file, or wait for the process that fetches it; return False if there is no free space for it."""
        path, entry = safe_path(self.root, name), self._files[name]
        partial = partial_beside(path)
        with process_lock(_lock_of(path), "this file", wait=None if free_room_only else _look_on), writing(path):
            if path.exists():
                return True
            try:
                # No space is reserved for metadata, which takes a few kilobytes.
                if "/c/" in name and not self._reserve(partial, entry.num_bytes, free_room_only=free_room_only):
                    return False
                self._download(name, partial, entry)
                self._verified.add(_key_of(partial.stat()))
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        return True

    def _reserve(self, partial: Path, num_bytes: int, *, free_room_only: bool) -> bool:
        """Free and reserve space for a file, so that other processes count it during the download."""
        deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_ROOM
        while True:
            with process_lock(self._folder / _LOCK, "the disk cache", wait=_look_on):
                if self._make_room(num_bytes, used_before=self._opened_ns if free_room_only else math.inf):
                    partial.touch()
                    os.truncate(partial, num_bytes)
                    return True
            if free_room_only:
                return False
            # The space is taken by downloads in progress.
            if num_bytes > self._max_bytes or time.monotonic() > deadline:
                raise StorageError(
                    "The disk cache of remote caches is too small.",
                    where=str(self._folder),
                    why=f"it may hold {self._max_bytes / 1e9:.2f} GB, one file has {num_bytes / 1e9:.2f}",
                    next_command="give a larger --disk-cache-gb",
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _make_room(self, num_bytes: int, *, used_before: float) -> bool:
        files = []
        for path in (self._folder / "reading").rglob("*"):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and path.suffix != _LOCK:
                    files.append((status.st_atime_ns, status.st_size, path))
        used = sum(size for _, size, _ in files)
        for opened_ns, size, path in sorted(files):
            if used + num_bytes <= self._max_bytes or opened_ns >= used_before:
                break
            # Evict shards and partial downloads of killed processes, not the few kilobytes of metadata.
            if "/c/" in path.as_posix() and not _is_coming_in(path):
                path.unlink(missing_ok=True)
                used -= size
        return used + num_bytes <= self._max_bytes

    def _download(self, name: str, target: Path, entry: FileEntry) -> None:
        state = hashlib.sha256()
        with target.open("r+b" if target.exists() else "wb") as file:
            try:
                for block in self._stream(name):
                    state.update(block)
                    file.write(block)
                    if file.tell() > entry.num_bytes:
                        break
            except MissingFile:
                raise self.damaged(_DAMAGED, name, "it is missing") from None
            received = FileEntry(num_bytes=file.tell(), sha256=state.hexdigest())
        if problem := content_problem(received, entry):
            raise self.damaged(_DAMAGED, name, problem)

    def fetch_ahead(self, names: Iterable[str]) -> None:
        """Fetch files in the background, in this order, each at most once, and only into free space."""
        with self._lock:
            new = [name for name in names if name in self._files and name not in self._requested]
            self._requested.update(new)
            self._ahead.extend(new)
            for _ in range(min(_CONNECTIONS - self._num_threads, len(self._ahead))):
                self._num_threads += 1
                # No daemon threads: one inside a library call could crash the interpreter as it exits.
                threading.Thread(target=self._work_ahead, name="advl-fetch-ahead").start()

    def _work_ahead(self) -> None:
        while True:
            with self._lock:
                if not self._ahead or not threading.main_thread().is_alive():
                    self._num_threads -= 1
                    return
                name = self._ahead.popleft()
            try:
                has_room = safe_path(self.root, name).exists() or self._fetch(name, free_room_only=True)
            except InUse:
                continue  # Another process or thread fetches it.
            except AdvlError:
                has_room = False  # The error is raised again when the file is read.
            if not has_room:
                with self._lock:
                    # Stop fetching ahead.
                    self._requested.update(self._files)
                    self._ahead.clear()


def _key_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{_LOCK}")


def _look_on(holder: str) -> None:
    """Wait for a lock silently: its holder is fetching a file."""
    del holder


def _is_coming_in(path: Path) -> bool:
    """Return whether this is a partial download that a process is still fetching."""
    if path.suffix != ".partial":
        return False
    try:
        with process_lock(_lock_of(path.with_suffix("").with_suffix("")), "this file"):
            return False
    except InUse:
        return True
