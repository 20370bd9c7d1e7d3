"""A bounded folder of this machine that holds files of remote caches: what finetuning reads them through.

Several processes may use one folder. A file is fetched under a kernel lock on its partial copy, checked against the
digest in the cache's commit record while it comes in, and again when another process first maps it. A mapped file
carries a shared lock, which lives as long as the map; only a file whose lock can be had alone is evicted, least
recently opened first. The bound holds for everything under the folder, fetches in flight included. Files that will be
read soon are fetched ahead, a few at once, in the order of need, into free room only.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from advl_pipeline.base.atomic import writing
from advl_pipeline.base.errors import AdvlError, StorageError
from advl_pipeline.base.locations import Location
from advl_pipeline.cache.config import DiskCacheConfig
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
_LOCK_FILE = ".lock"
_PARTIAL = ".partial"
_SECONDS_TO_WAIT_FOR_ROOM = 30.0
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_BETWEEN_TRIES = 0.01
_CONNECTIONS = 4
"""An object store gives one connection a part of what the line gives."""

Stream = Callable[[str], Iterator[Buffer]]


class DiskCache(Readable):
    """The files of one remote cache in the folder.

    Args:
        stream: yields the content of a file in blocks; raises `MissingFile`.
        files: what the cache's commit record says of each file; no other file is given out.
        key: names the content of the cache, such as the digest of its complete record.
    """

    reads_whole = True

    def __init__(
        self, location: Location, stream: Stream, config: DiskCacheConfig, files: Files, *, key: str
    ) -> None:
        self.location = location
        self.root = config.folder / "reading" / key
        self._files = files
        self._stream = stream
        self._config = config
        self._verified: set[tuple[int, int, int]] = set()
        self._releases: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._lock = threading.Lock()
        self._opened_ns = time.time_ns()
        self._ahead = FetchAhead(self._fetch_into_free_room)

    def get(self, name: str) -> bytes:
        """As `Readable.get`, as the commit record says it must be; it stays here."""
        with self.opened(name) as descriptor:
            return os.pread(descriptor, self._files[name].num_bytes, 0)

    @contextmanager
    def opened(self, name: str, *, release: Callable[[], None] = lambda: None) -> Iterator[int]:
        """As `Readable.opened`.

        The descriptor carries a shared lock that keeps the file here: for as long as a map lives that was made in the
        block.
        """
        if name not in self._files:
            raise self.damaged(_DAMAGED, name, "its commit record does not list it")
        descriptor = self._open_sound(name)
        try:
            # The time of access, set by hand since most file systems update it rarely; eviction goes by it.
            with suppress(OSError):
                os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))
            yield descriptor
            # Not before: asked too early, a reader would have nothing to let go of, and keep the file for good.
            with self._lock:
                self._releases[name] = release
                self._releases.move_to_end(name)
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
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                # Evicted between the two calls, or damaged on this disk, it is fetched again.
                if not os.fstat(descriptor).st_nlink:
                    continue
                if (key := _content_key(descriptor)) in self._verified or hash_file(descriptor) == self._files[name]:
                    self._verified.add(key)
                    stack.pop_all()
                    return descriptor
                path.unlink(missing_ok=True)

    def fetch_ahead(self, names: Iterable[str]) -> None:
        """Fetch files in the background, in this order, while nothing that was read lately has to go for them."""
        self._ahead.request(name for name in names if name in self._files)

    def _fetch_into_free_room(self, name: str) -> bool:
        return safe_path(self.root, name).exists() or self._fetch(name, free_room_only=True)

    def _fetch(self, name: str, *, free_room_only: bool = False) -> bool:
        path, entry = safe_path(self.root, name), self._files[name]
        partial = path.with_name(path.name + _PARTIAL)
        with writing(path), _opened_file(partial) as descriptor:
            # Whoever holds the lock fetches; the others look until the file is there, and who fetches ahead has
            # nothing to do. They must not wait for the lock: once the copy has its name, readers keep that lock for
            # as long as they live.
            while not _try_lock(descriptor):
                if free_room_only or path.exists() or os.fstat(descriptor).st_nlink == 0:
                    return True
                time.sleep(_SECONDS_BETWEEN_TRIES)
            if os.fstat(descriptor).st_nlink == 0:
                return True
            try:
                if path.exists():
                    return True
                if "/c/" not in name:
                    # Of a few kilobytes of metadata it is not asked whether there is room.
                    os.ftruncate(descriptor, entry.num_bytes)
                elif not self._reserve(descriptor, entry.num_bytes, free_room_only=free_room_only):
                    return False
                self._download(name, descriptor, entry)
                self._verified.add(_content_key(descriptor))
                partial.replace(path)
                return True
            finally:
                # The lock is still held: nobody else fetches while the file is here.
                partial.unlink(missing_ok=True)

    def _download(self, name: str, descriptor: int, entry: FileEntry) -> None:
        state = hashlib.sha256()
        with open(descriptor, "wb", closefd=False) as file:
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

    def _reserve(self, descriptor: int, num_bytes: int, *, free_room_only: bool) -> bool:
        """Make room for a file and take it, so that other processes count it while it comes in."""
        if num_bytes > self._config.max_bytes:
            raise self._no_room(f"one file of the cache has {num_bytes / 1e9:.2f} GB")
        deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_ROOM
        while True:
            with _opened_file(self._config.folder / _LOCK_FILE) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.ftruncate(descriptor, 0)
                if self._make_room(num_bytes, used_before=self._opened_ns if free_room_only else math.inf):
                    os.ftruncate(descriptor, num_bytes)
                    return True
            if free_room_only:
                return False
            with self._lock:
                release = self._releases.popitem(last=False)[1] if self._releases else None
            if release is not None:
                release()
            elif time.monotonic() > deadline:
                raise self._no_room("everything in it is in use")
            else:
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _make_room(self, num_bytes: int, *, used_before: float) -> bool:
        files: list[tuple[int, int, Path]] = []
        for path in (self._config.folder / "reading").rglob("*"):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if path.is_file():
                    files.append((status.st_atime_ns, status.st_size, path))
        used = sum(size for _, size, _ in files)
        for opened_ns, size, path in sorted(files):
            if used + num_bytes <= self._config.max_bytes or opened_ns >= used_before:
                break
            # Shards, and partial copies of them that a killed process left; not the few kilobytes of metadata.
            if "/c/" in path.as_posix():
                # Whoever reads a file holds a lock on it.
                with suppress(OSError), path.open("rb") as file:
                    if _try_lock(file.fileno()):
                        path.unlink(missing_ok=True)
                        used -= size
        return used + num_bytes <= self._config.max_bytes

    def _no_room(self, why: str) -> StorageError:
        return StorageError(
            "The disk cache of remote caches is too small.",
            where=str(self._config.folder),
            why=f"{why}; it may hold {self._config.max_bytes / 1e9:.2f} GB",
            next_command="give a larger --disk-cache-gb",
        )


@contextmanager
def _opened_file(path: Path) -> Iterator[int]:
    """Open a file, which is made where there is none, until the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _content_key(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


class FetchAhead:
    """The files that one process will read soon, each fetched ahead once at most.

    Once there is no free room, or a file could not be fetched, nothing more is: whoever reads that file meets the
    error, and until then it is none.

    Args:
        fetch: brings a file here; returns False where there is no free room for it.
    """

    def __init__(self, fetch: Callable[[str], bool]) -> None:
        self._fetch = fetch
        self._requested: set[str] = set()
        self._waiting: deque[str] = deque()
        self._is_over = False
        self._num_threads = 0
        self._lock = threading.Lock()

    def request(self, names: Iterable[str]) -> None:
        """Fetch files in this order."""
        with self._lock:
            if self._is_over:
                return
            new = [name for name in names if name not in self._requested]
            self._requested.update(new)
            self._waiting.extend(new)
            for _ in range(min(_CONNECTIONS - self._num_threads, len(self._waiting))):
                self._num_threads += 1
                # No daemons: one that is inside a library when the interpreter ends could crash it.
                threading.Thread(target=self._work, name="advl-fetch-ahead").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._is_over or not self._waiting or not threading.main_thread().is_alive():
                    self._num_threads -= 1
                    return
                name = self._waiting.popleft()
            try:
                has_room = self._fetch(name)
            except AdvlError:
                has_room = False
            self._is_over = self._is_over or not has_room
