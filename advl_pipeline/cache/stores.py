"""A cache in a folder, and `open_store`, the only place that distinguishes folders from buckets.

In a folder, a file is written completely in the work folder, flushed, and published by a rename or a link.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from advl_pipeline.base.atomic import sync_folder, write_text, writing
from advl_pipeline.base.errors import CorruptCache, NotAllowed, StorageError, again
from advl_pipeline.base.folders import may_note, require_folder
from advl_pipeline.base.locations import Location, Url, not_allowed, read_regular
from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.store import (
    LOCKS,
    NOT_PLAIN,
    WORK_FOLDER,
    Buffer,
    FileEntry,
    Files,
    MissingFile,
    Readable,
    Stamp,
    Store,
    entry_of,
    hash_file,
    is_inside,
    require_sizes,
    safe_path,
    verified_path,
)

_ATTEMPTS = 8

_SMALL_FILE_BYTES = 1 << 28

_TEMPORARY = f"{WORK_FOLDER}/tmp"


def open_store(location: Location) -> Store:
    """Return the store at a location, a folder or a URL, without a request to it."""
    return ObjectStore(location) if isinstance(location, Url) else FolderStore(location)


class FolderStore(Store):
    """A cache in a folder that all processes share."""

    location: Path

    def __init__(self, root: Path) -> None:
        self.location = root
        # A process may change its working folder while the cache is open.
        self.folder = self._root = root.absolute()
        self.locks = self._root / LOCKS

    def get(self, name: str) -> bytes:
        with self.opened(name) as descriptor:
            if os.fstat(descriptor).st_size > _SMALL_FILE_BYTES:
                raise CorruptCache("A metadata file is implausibly large.", where=str(self._root / name))
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        path = safe_path(self._root, name)
        try:
            # O_NONBLOCK: never wait for the other end of a named pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise MissingFile(
                "A file of the cache is missing.", where=self.where(name), next_command=self.repair_command
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
        sizes: dict[str, int] = {}
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
                        sizes[name] = size if entry.is_file(follow_symlinks=False) else NOT_PLAIN
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._unreadable(self._root / here, error) from error
        return dict(sorted(sizes.items()))

    def put(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        target = self._root / name
        entry = entry_of(*parts)
        with writing(name):
            self._clear_the_way(target)
            if not (target.is_file() and target.stat().st_size == entry.num_bytes and hash_file(target) == entry):
                self._publish(name, parts, replace=True)
        return entry

    def put_if_absent(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        target = self._root / name
        with writing(name):
            self._clear_the_way(target)
            if not target.is_file():
                self._publish(name, parts, replace=False)
            return hash_file(target)

    def _publish(self, name: str, parts: Sequence[Buffer], *, replace: bool) -> None:
        """Write and publish a file; retry if another process removes the work folder in the meantime."""
        for attempt in range(_ATTEMPTS):
            try:
                self._write_and_show(name, parts, replace=replace)
                return
            except (FileNotFoundError, FileExistsError):
                if attempt == _ATTEMPTS - 1:
                    raise

    def _write_and_show(self, name: str, parts: Sequence[Buffer], *, replace: bool) -> None:
        # Process ids are unique neither between threads nor between machines and containers.
        temporary = self._root / _TEMPORARY / f"{secrets.token_hex(8)}-{name.replace('/', '_')}"
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
            if replace or not _link(temporary, target):
                temporary.replace(target)
            for folder in {target.parent, *(folder.parent for folder in missing)}:
                sync_folder(folder)
        finally:
            temporary.unlink(missing_ok=True)
            self._remove_empty(temporary.parent)

    def _clear_the_way(self, target: Path) -> None:
        """Remove links, or a folder, in the place of a regular file."""
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
            with writing(path):
                self._clear_the_way(path)
                # If a parent of the name is a file, nothing of that name exists.
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

    def prepare_writing(self) -> None:
        with writing(LOCKS):
            self._clear_the_way(self.locks / "lock")

    def require_place(self) -> None:
        require_folder(self.location, "cache")

    def changed(self, files: Files) -> dict[str, Stamp]:
        verified = self._verified_stamps()
        status_of = {name: (self._root / name).lstat() for name in files}
        stamps = {
            name: (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            for name, status in status_of.items()
        }
        return {name: stamp for name, stamp in stamps.items() if verified.get(name) != stamp}

    def mark_verified(self, stamps: Mapping[str, Stamp]) -> None:
        path = verified_path(self._root)
        note = {
            "record": hash_file(self._root / COMPLETE_RECORD).sha256,
            "files": self._verified_stamps() | dict(stamps),
        }
        # If nothing can be written next to the cache, the next run hashes the changed files again.
        with suppress(StorageError, OSError):
            if may_note(path):
                write_text(path, json.dumps(note))

    def _verified_stamps(self) -> dict[str, Stamp]:
        """Return the stamps that were noted for the current complete record."""
        try:
            note = json.loads(read_regular(verified_path(self._root)))
            is_of_this_record = note["record"] == hash_file(self._root / COMPLETE_RECORD).sha256
            return {name: tuple(stamp) for name, stamp in note["files"].items()} if is_of_this_record else {}
        except (OSError, NotAllowed, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def reading(self, record: bytes, files: Files) -> Readable:
        require_sizes(self, self.list(), files)
        return self

    def _unreadable(self, path: Path, error: OSError) -> CorruptCache | StorageError:
        if isinstance(error, PermissionError):
            return not_allowed(path)
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return StorageError(
                "Too many files are open.",
                where=str(path),
                why=f"{error.strerror}; each shard that was read stays mapped",
                next_command=again("ulimit -n 65536, then run the same command again"),
            )
        return CorruptCache(
            "A file of the cache cannot be read.",
            where=str(path),
            why=error.strerror or str(error),
            next_command=self.repair_command,
        )


def _open_new(path: Path) -> io.FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return io.FileIO(path, "wb")


def _link(path: Path, target: Path) -> bool:
    """Give a file a second name unless that name is taken; False if the file system has no hard links."""
    try:
        target.hardlink_to(path)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            return False
        raise
    return True
