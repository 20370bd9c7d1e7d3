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
from contextlib import contextmanager, suppress
from pathlib import Path

from advl_pipeline.cache.config import DiskCacheConfig
from advl_pipeline.cache.files import FileEntry, Files, entry_of, hash_file, safe_path, storing
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.store import MissingFile, Readable
from advl_pipeline.errors import AdvlError, StorageError

_DAMAGED = "A file of the cache is damaged."
_LOCK_FILE = ".lock"
_PARTIAL = ".partial"
_SECONDS_TO_WAIT_FOR_ROOM = 30.0
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_BETWEEN_TRIES = 0.01
_CONNECTIONS = 4
"""An object store gives one connection a part of what the line gives."""


class DiskCache(Readable):
    """The files of one remote cache in the folder.

    Args:
        key: names the content of the cache, such as the digest of its complete record.
    """

    reads_whole = True

    def __init__(self, store: ObjectStore, config: DiskCacheConfig, *, key: str) -> None:
        self.location = store.url
        self.root = config.folder / "reading" / key
        self._files: Files = {}
        self._store = store
        self._config = config
        self._verified: set[tuple[int, int, int]] = set()
        self._releases: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._lock = threading.RLock()
        self._opened_ns = time.time_ns()
        self._ahead = FetchAhead(self._fetch_into_free_room)

    def expect(self, files: Files) -> None:
        """Set what the cache's commit record says of each file; no other file is given out."""
        self._files = files

    def get(self, name: str) -> bytes:
        """As `Readable.get`, as the commit record says it must be; it stays here."""
        entry = self._entry(name)
        path = safe_path(self.root, name)
        with suppress(OSError):
            if entry_of(content := path.read_bytes()) == entry:
                return content
        content = self._store.get(name)
        if entry_of(content) != entry:
            raise self.damaged(_DAMAGED, name, "its content changed")
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_PARTIAL}")
            partial.write_bytes(content)
            partial.replace(path)
        return content

    def _entry(self, name: str) -> FileEntry:
        if (entry := self._files.get(name)) is None:
            raise self.damaged(_DAMAGED, name, "its commit record does not list it")
        return entry

    @contextmanager
    def opened(self, name: str, *, release: Callable[[], None] = lambda: None) -> Iterator[int]:
        """As `Readable.opened`.

        The descriptor carries a shared lock that keeps the file here: for as long as a map lives that was made in the
        block.
        """
        path = safe_path(self.root, name)
        entry = self._entry(name)
        self._ahead.reading(name)
        with self._lock:
            descriptor = self._open_sound(name, path, entry)
            try:
                # The time of access, set by hand since most file systems update it rarely; eviction goes by it.
                with suppress(OSError):
                    os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))
                yield descriptor
                self._releases[name] = release
                self._releases.move_to_end(name)
            finally:
                os.close(descriptor)

    def _open_sound(self, name: str, path: Path, entry: FileEntry) -> int:
        while True:
            descriptor = None
            with storing(path), suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if descriptor is None:
                self._fetch(name, path, entry)
                continue
            is_sound = False
            try:
                with storing(path):
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    is_sound = bool(os.fstat(descriptor).st_nlink) and self._is_sound(descriptor, path, entry)
            finally:
                # Evicted between the two calls, or damaged on this disk: it is fetched again.
                if not is_sound:
                    os.close(descriptor)
            if is_sound:
                return descriptor

    def fetch_ahead(self, names: Iterable[str]) -> None:
        """Fetch files in the background, in this order, while nothing that was read lately has to go for them."""
        self._ahead.request(name for name in names if name in self._files)

    def _fetch_into_free_room(self, name: str) -> bool:
        path = safe_path(self.root, name)
        return path.exists() or self._fetch(name, path, self._files[name], free_room_only=True)

    def _is_sound(self, descriptor: int, path: Path, entry: FileEntry) -> bool:
        key = _content_key(descriptor)
        if key in self._verified:
            return True
        try:
            found = hash_file(path)
        except FileNotFoundError:
            return False
        if found == entry:
            self._verified.add(key)
            return True
        path.unlink(missing_ok=True)
        return False

    def _fetch(self, name: str, path: Path, entry: FileEntry, *, free_room_only: bool = False) -> bool:
        partial = path.with_name(path.name + _PARTIAL)
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                # Whoever holds the lock fetches; the others look until the file is there, and who fetches ahead has
                # nothing to do. They must not wait for the lock: once the copy has its name, readers keep that lock
                # for as long as they live.
                while not _try_lock(descriptor):
                    if free_room_only or path.exists() or os.fstat(descriptor).st_nlink == 0:
                        return True
                    time.sleep(_SECONDS_BETWEEN_TRIES)
                if os.fstat(descriptor).st_nlink == 0:
                    return True
                if path.exists():
                    partial.unlink(missing_ok=True)
                    return True
                if not free_room_only:
                    self._reserve(descriptor, entry.num_bytes)
                elif not self._take(descriptor, entry.num_bytes, used_before=self._opened_ns):
                    partial.unlink(missing_ok=True)
                    return False
                try:
                    self._download(name, descriptor, entry)
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
                self._verified.add(_content_key(descriptor))
                partial.replace(path)
                return True
            finally:
                os.close(descriptor)

    def _download(self, name: str, descriptor: int, entry: FileEntry) -> None:
        state, size = hashlib.sha256(), 0
        try:
            for block in self._store.stream(name):
                view = memoryview(block).cast("B")
                size += len(view)
                if size > entry.num_bytes:
                    break
                state.update(view)
                while view:
                    view = view[os.write(descriptor, view) :]
        except MissingFile:
            raise self.damaged(_DAMAGED, name, "it is missing") from None
        if size != entry.num_bytes:
            raise self.damaged(
                "A file of the cache is damaged.", name, f"it has {size} bytes instead of {entry.num_bytes}"
            )
        if state.hexdigest() != entry.sha256:
            raise self.damaged(_DAMAGED, name, "its content changed")

    def _reserve(self, descriptor: int, num_bytes: int) -> None:
        """Make room for a file and take it, so that other processes count it while it comes in."""
        if num_bytes > self._config.max_bytes:
            raise self._no_room(f"one file of the cache has {num_bytes / 1e9:.2f} GB")
        deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_ROOM
        while not self._take(descriptor, num_bytes):
            if self._releases:
                self._releases.popitem(last=False)[1]()
            elif time.monotonic() > deadline:
                raise self._no_room("everything in it is in use")
            else:
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _take(self, descriptor: int, num_bytes: int, *, used_before: float = math.inf) -> bool:
        with _locked(self._config.folder / _LOCK_FILE):
            os.ftruncate(descriptor, 0)
            has_room = self._make_room(num_bytes, used_before)
            if has_room:
                os.ftruncate(descriptor, num_bytes)
            return has_room

    def _make_room(self, num_bytes: int, used_before: float) -> bool:
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
            if "/c/" in path.as_posix() and _evict(path):
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
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _evict(path: Path) -> bool:
    """Remove a file, unless another process holds a lock on it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if is_free := _try_lock(descriptor):
            path.unlink(missing_ok=True)
        return is_free
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

    Only arrays that are read at all are fetched: what is requested of others waits for their first reading. Once
    there is no free room, or a file could not be fetched, nothing more is: whoever reads that file meets the error,
    and until then it is none.

    Args:
        fetch: brings a file here; returns False where there is no free room for it.
    """

    def __init__(self, fetch: Callable[[str], bool]) -> None:
        self._fetch = fetch
        self._requested: set[str] = set()
        self._waiting: dict[str, list[str]] = {}
        self._wanted: deque[str] = deque()
        self._read_arrays: set[str] = set()
        self._is_over = False
        self._num_threads = 0
        self._lock = threading.Lock()

    def request(self, names: Iterable[str]) -> None:
        """Fetch files in this order."""
        with self._lock:
            for name in names:
                if name in self._requested:
                    continue
                self._requested.add(name)
                array = _array_of(name)
                if array in self._read_arrays:
                    self._wanted.append(name)
                else:
                    self._waiting.setdefault(array, []).append(name)
            self._start_threads()

    def reading(self, name: str) -> None:
        """Note that a file is about to be read."""
        with self._lock:
            array = _array_of(name)
            if array not in self._read_arrays:
                self._read_arrays.add(array)
                self._wanted.extend(self._waiting.pop(array, []))
                self._start_threads()

    def _start_threads(self) -> None:
        if self._is_over:
            return
        for _ in range(min(_CONNECTIONS - self._num_threads, len(self._wanted))):
            self._num_threads += 1
            # No daemons: one that is inside a library when the interpreter ends could crash it.
            threading.Thread(target=self._work, name="advl-fetch-ahead").start()

    def _work(self) -> None:
        while (name := self._next()) is not None:
            try:
                self._is_over = not self._fetch(name) or self._is_over
            except AdvlError:
                self._is_over = True

    def _next(self) -> str | None:
        with self._lock:
            if self._wanted and not self._is_over and threading.main_thread().is_alive():
                return self._wanted.popleft()
            self._num_threads -= 1
            return None


def _array_of(name: str) -> str:
    return name.partition("/c/")[0]
