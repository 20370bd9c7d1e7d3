"""Files of a cache: written whole in the work folder, flushed, shown by rename; read without following links."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_pipeline.atomic import reason_of
from advl_pipeline.errors import CorruptCache, StorageError

WORK_FOLDER = ".work"
"""Inside the cache, so that renames stay on one file system; gone once the cache is complete."""

Buffer = bytes | bytearray | memoryview
_BLOCK_BYTES = 1 << 22
_OPEN_ATTEMPTS = 8
_SMALL_FILE_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """Size and hexadecimal SHA-256 of a file."""

    num_bytes: int
    sha256: str


def publish(root: Path, relative: str, parts: Iterable[Buffer]) -> FileEntry:
    """Write a file in full, flush it, then let it appear under its name; returns what was written.

    Raises:
        StorageError: the disk is full or failed; the half-written file is removed.
    """
    temporary = root / WORK_FOLDER / "tmp" / f"{os.getpid()}-{relative.replace('/', '_')}"
    state, size = hashlib.sha256(), 0
    try:
        with _open_new(temporary) as handle:
            for part in parts:
                view = memoryview(part).cast("B")
                state.update(view)
                size += len(view)
                while view:
                    view = view[handle.write(view) :]
            os.fsync(handle.fileno())
        move_into_place(temporary, root / relative)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, relative) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return FileEntry(num_bytes=size, sha256=state.hexdigest())


def _open_new(path: Path) -> io.FileIO:
    # Another process that finishes may remove the empty work folder between the two calls.
    for _ in range(_OPEN_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return io.FileIO(path, "wb")
    raise FileNotFoundError(errno.ENOENT, "the work folder keeps disappearing", str(path))


def publish_if_changed(root: Path, relative: str, parts: Sequence[Buffer]) -> FileEntry:
    """Publish a file unless it is there with this content already; then it is left alone."""
    target = root / relative
    size = sum(memoryview(part).nbytes for part in parts)
    if target.is_file() and not target.is_symlink() and target.stat().st_size == size:
        state = hashlib.sha256()
        for part in parts:
            state.update(part)
        entry = FileEntry(num_bytes=size, sha256=state.hexdigest())
        if hash_file(target) == entry:
            return entry
    return publish(root, relative, parts)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a flushed file or folder to its public name and flush the folders that change."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    for folder in {target.parent, *(folder.parent for folder in missing)}:
        flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError, relative: str) -> StorageError:
    """Say what the disk said, and that nothing committed is lost."""
    return StorageError(
        "A file of the cache could not be written.",
        where=relative,
        why=f"{reason_of(error)}; everything committed before is intact",
        next_command="make room or mend the disk, then give the same command again: it resumes",
    )


def safe_path(root: Path, relative: str) -> Path:
    """Return the path of a file of the cache, refusing names and links that lead elsewhere.

    Raises:
        CorruptCache: the name leaves the cache, by `..` or by a symbolic link.
    """
    path = root / relative
    parts = relative.split("/")
    if relative.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise CorruptCache("A file name leaves the cache.", where=relative)
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), *parts):  # noqa: PTH118
        raise CorruptCache("A file of the cache is a link to elsewhere.", where=str(path))
    return path


def read_small(root: Path, relative: str) -> bytes:
    """Read a metadata file of the cache.

    Raises:
        CorruptCache: it is missing, too large to be metadata, or a link.
    """
    path = safe_path(root, relative)
    try:
        if path.stat().st_size > _SMALL_FILE_BYTES:
            raise CorruptCache("A metadata file is implausibly large.", where=str(path))
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptCache("A file of the cache is missing.", where=str(path)) from None
    except OSError as error:
        raise CorruptCache("A file of the cache cannot be read.", where=str(path), why=str(error)) from error


def read_json(root: Path, relative: str) -> Any:
    """Read a JSON file of the cache; raises `CorruptCache` when it does not parse."""
    try:
        return json.loads(read_small(root, relative))
    except (ValueError, RecursionError) as error:
        raise CorruptCache("A metadata file is damaged.", where=str(root / relative), why=str(error)) from None


def hash_file(path: Path) -> FileEntry:
    """Return size and digest of a file, read in blocks."""
    state, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as handle:
        while block := handle.read(_BLOCK_BYTES):
            state.update(block)
            size += len(block)
    return FileEntry(num_bytes=size, sha256=state.hexdigest())


def remove_work(root: Path) -> None:
    """Remove the work folder; several processes may do so at once."""
    shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
