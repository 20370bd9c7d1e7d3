"""A cache in a folder: files written whole in the work folder, flushed, shown by rename; kernel locks claim.

A lock ends with the process that holds it. So a dead claimer's work is free at once, and no claim is judged stale.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from advl_pipeline.atomic import sync_folder, write_text
from advl_pipeline.cache.checks import require_sizes
from advl_pipeline.cache.files import (
    WORK_FOLDER,
    Buffer,
    FileEntry,
    Files,
    entry_of,
    hash_file,
    is_inside,
    safe_path,
    storing,
    vouched_path,
)
from advl_pipeline.cache.records import COMPLETE_RECORD
from advl_pipeline.cache.store import NOT_PLAIN, MissingFile, Readable, Stamp, Store
from advl_pipeline.errors import ConfigError, CorruptCache, StorageError
from advl_pipeline.folders import require_folder

_OPEN_ATTEMPTS = 8
_SMALL_FILE_BYTES = 1 << 28
_CLAIMS = f"{WORK_FOLDER}/claims"
_TEMPORARY = f"{WORK_FOLDER}/tmp"


class FolderStore(Store):
    """A folder that all processes see."""

    reads_whole = False

    def __init__(self, root: Path) -> None:
        self.location = self.folder = self._root = root

    def get(self, name: str) -> bytes:
        with self.opened(name) as descriptor:
            if os.fstat(descriptor).st_size > _SMALL_FILE_BYTES:
                raise CorruptCache("A metadata file is implausibly large.", where=str(self._root / name))
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()

    @contextmanager
    def opened(self, name: str, *, release: Callable[[], None] = lambda: None) -> Iterator[int]:
        path = safe_path(self._root, name)
        try:
            # Without waiting for the other end of a pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise MissingFile(
                "A file of the cache is missing.", where=str(path), next_command=self.repair_command
            ) from None
        except OSError as error:
            raise self._unreadable(path, error) from error
        try:
            yield descriptor
        except OSError as error:
            raise self._unreadable(path, error) from error
        finally:
            os.close(descriptor)

    def list(self, folder: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        if folder:
            safe_path(self._root, folder)
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            try:
                for entry in os.scandir(self._root / here):
                    name = f"{here}/{entry.name}" if here else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(name)
                        continue
                    with suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        found[name] = size if entry.is_file(follow_symlinks=False) else NOT_PLAIN
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._unreadable(self._root / here, error) from error
        return dict(sorted(found.items()))

    def put(self, name: str, parts: Sequence[Buffer], *, lease: str = "") -> FileEntry:
        target = self._root / name
        entry = entry_of(*parts)
        with storing(name):
            self._clear_the_way(target)
            if not (target.is_file() and target.stat().st_size == entry.num_bytes and hash_file(target) == entry):
                self._publish(name, parts)
        return entry

    def commit(self, name: str, content: bytes, *, lease: str = "") -> FileEntry:
        return self.put(name, [content])

    def _publish(self, name: str, parts: Sequence[Buffer]) -> None:
        temporary = self._root / _TEMPORARY / f"{os.getpid()}-{name.replace('/', '_')}"
        target = self._root / name
        self._clear_the_way(temporary)
        try:
            with _open_new(temporary) as handle:
                for part in parts:
                    view = memoryview(part).cast("B")
                    while view:
                        view = view[handle.write(view) :]
                os.fsync(handle.fileno())
            missing = [folder for folder in target.parents if not folder.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            for folder in {target.parent, *(folder.parent for folder in missing)}:
                sync_folder(folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _clear_the_way(self, target: Path) -> None:
        """Remove links, and a folder, that stand where a plain file is to be."""
        for folder in reversed(target.relative_to(self._root).parents):
            if folder.name and (self._root / folder).is_symlink():
                (self._root / folder).unlink()
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)

    def delete(self, *names: str) -> None:
        for name in filter(is_inside, names):
            path = self._root / name
            with storing(path):
                self._clear_the_way(path)
                # A folder with a file's name above it has nothing of that name.
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
            self._remove_empty(path.parent)

    def delete_under(self, folder: str = "") -> None:
        path = self._root / folder
        shutil.rmtree(path.resolve() if path == self._root else path, ignore_errors=True)
        if path != self._root:
            self._remove_empty(path.parent)
        elif path.is_symlink():
            path.unlink()

    def _remove_empty(self, folder: Path) -> None:
        with suppress(OSError):
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    @contextmanager
    def claim(self, name: str, *, wait: bool = False, once: bool = False) -> Iterator[bool]:
        path, descriptor, ours = self._root / _CLAIMS / name, None, False
        missing = [folder for folder in path.parents if not folder.exists()]
        # Another process may complete the cache and remove the work folder between the two calls.
        with storing(f"{_CLAIMS}/{name}"), suppress(FileNotFoundError):
            self._clear_the_way(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        if descriptor is None:
            yield False
            return
        try:
            # An error tells of a folder shared between machines whose file system knows no locks.
            with storing(f"{_CLAIMS}/{name}"), suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                ours = True
            yield ours
            if ours and once:
                path.unlink(missing_ok=True)
                self._remove_empty(self._root / _TEMPORARY)
                self._remove_empty(path.parent)
        except BaseException:
            # A command that is refused leaves no trace where nothing was before.
            if ours and missing:
                with suppress(OSError):
                    path.unlink()
                    for folder in missing:
                        folder.rmdir()
            raise
        finally:
            os.close(descriptor)

    def require_place(self) -> None:
        require_folder(self._root, "cache")

    def changed(self, files: Files) -> dict[str, Stamp]:
        vouched = self._vouched()
        found = {name: (self._root / name).lstat() for name in files}
        stamps = {name: (one.st_size, one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for name, one in found.items()}
        return {name: stamp for name, stamp in stamps.items() if vouched.get(name) != stamp}

    def vouch(self, stamps: Mapping[str, Stamp]) -> None:
        note = {"record": hash_file(self._root / COMPLETE_RECORD).sha256, "files": self._vouched() | dict(stamps)}
        # Where nothing can be written beside the cache, the next run hashes what changed once more.
        with suppress(StorageError, ConfigError):
            write_text(vouched_path(self._root), json.dumps(note))

    def _vouched(self) -> dict[str, Stamp]:
        """Return the stamps that were noted under the complete record that stands."""
        try:
            note = json.loads(vouched_path(self._root).read_bytes())
            is_of_this_record = note["record"] == hash_file(self._root / COMPLETE_RECORD).sha256
            return {name: tuple(stamp) for name, stamp in note["files"].items()} if is_of_this_record else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def reading(self, record: bytes, files: Files) -> Readable:
        require_sizes(self, self.list(), files)
        return self

    def _unreadable(self, path: Path, error: OSError) -> CorruptCache | StorageError:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return StorageError(
                "More files cannot be opened.",
                where=str(path),
                why=f"{error.strerror}; each shard that was read stays mapped",
                next_command="ulimit -n 65536, then give the same command again",
            )
        return CorruptCache(
            "A file of the cache cannot be read.",
            where=str(path),
            why=error.strerror or str(error),
            next_command=self.repair_command,
        )


def _open_new(path: Path) -> io.FileIO:
    # Another process that finishes may remove the empty work folder between the two calls.
    for _ in range(_OPEN_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return io.FileIO(path, "wb")
    raise FileNotFoundError(errno.ENOENT, "the work folder keeps disappearing", str(path))
