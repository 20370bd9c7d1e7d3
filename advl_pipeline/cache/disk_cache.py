"""A local folder that keeps the files of a remote cache; finetuning reads remote caches through it.

Several processes may share the folder. One of them fetches a file under a lock and checks it during the download
against the digest in the cache's commit record. Every other process checks it when it first opens it. A file stays
until the user removes it; one for which the disk has no room is refused. Files needed soon are prefetched, a few at a
time, in the order of need.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from advl_pipeline.base.atomic import writing
from advl_pipeline.base.errors import AdvlError, InUse, StorageError, again
from advl_pipeline.base.locations import Location
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.cache.config import ENVIRONMENT_VARIABLE
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
_CONNECTIONS = 4
"""Parallel downloads: one connection to an object store uses only part of the bandwidth."""

Stream = Callable[[str], Iterator[Buffer]]


class DiskCache(Readable):
    """The files of one remote cache in the folder.

    Args:
        stream: yields the content of a file in blocks; raises `MissingFile`.
        files: the entries in the cache's commit record; no other file can be opened.
        key: identifies the content of the cache, such as the digest of its complete record.
    """

    is_disk_cache = True

    def __init__(self, location: Location, stream: Stream, folder: Path, files: Files, *, key: str) -> None:
        self.location = location
        self.root = folder / "reading" / key
        self._files = files
        self._stream = stream
        self._verified: set[tuple[int, int, int]] = set()
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

    def _fetch(self, name: str, *, waits: bool = True) -> None:
        """Fetch a file; if another process fetches it, wait for that one or raise `InUse`."""
        path = safe_path(self.root, name)
        entry = self._files[name]
        lock = path.with_name(f"{path.name}.lock")
        # One name for all processes: what a killed one left is overwritten.
        partial = path.with_name(f"{path.name}.partial")
        with process_lock(lock, "this file", wait=_look_on if waits else None), writing(path):
            if path.exists():
                return
            self._require_room(entry.num_bytes)
            try:
                self._download(name, partial, entry)
                self._verified.add(_key_of(partial.stat()))
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def _require_room(self, num_bytes: int) -> None:
        num_free = shutil.disk_usage(self.root).free
        if num_bytes > num_free:
            whole = sum(entry.num_bytes for entry in self._files.values())
            raise StorageError(
                "There is no room on this disk for a remote cache.",
                where=str(self.root),
                why=f"the cache has {whole / 1e9:.2f} GB, its next file {num_bytes / 1e9:.2f}, and "
                f"{num_free / 1e9:.2f} are free",
                next_command=again(
                    f"remove caches that are no longer read, or set {ENVIRONMENT_VARIABLE} to a folder of a larger "
                    "disk; then run the same command again"
                ),
            )

    def _download(self, name: str, target: Path, entry: FileEntry) -> None:
        state = hashlib.sha256()
        with target.open("wb") as file:
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
        """Fetch files in the background, in this order, each at most once."""
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
                self._fetch(name, waits=False)
            except InUse:
                continue  # Another process or thread fetches it.
            except AdvlError:
                with self._lock:
                    # Stop fetching ahead; the error is raised again when the file is read.
                    self._requested.update(self._files)
                    self._ahead.clear()


def _key_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _look_on(holder: str) -> None:
    """Wait for a lock silently: its holder is fetching a file."""
    del holder
