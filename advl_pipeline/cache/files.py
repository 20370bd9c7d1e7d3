"""Names, sizes and digests of a cache's files, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.atomic import reason_of
from advl_pipeline.errors import CorruptCache, StorageError, again

WORK_FOLDER = ".work"
"""Work in progress, inside the cache so that renames stay on one file system; gone once the cache is complete."""

LOCKS = f"{WORK_FOLDER}/locks"
"""Locks of the processes that write a cache in a folder."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """Size and hexadecimal SHA-256 of a file."""

    num_bytes: int
    sha256: str


Files = Mapping[str, FileEntry]
"""What the files of a cache must be, by name."""


def journal_path(cache: Path) -> Path:
    """Return the file beside a cache that says how long it took, such as train.extraction.jsonl beside train/."""
    cache = cache.resolve()
    return cache.with_name(f"{cache.name}.extraction.jsonl")


def vouched_path(cache: Path) -> Path:
    """Return the file beside a cache that notes how its files were when they were last seen to be sound."""
    cache = cache.resolve()
    return cache.with_name(f"{cache.name}.vouched.json")


def entry_of(*parts: Buffer) -> FileEntry:
    """Return size and digest of a file that consists of these parts."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return FileEntry(num_bytes=sum(memoryview(part).nbytes for part in parts), sha256=state.hexdigest())


def hash_file(file: Path | int) -> FileEntry:
    """Return size and digest of a file, by its path or its descriptor."""
    with open(file, "rb", buffering=0, closefd=isinstance(file, Path)) as handle:
        handle.seek(0)
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        return FileEntry(num_bytes=handle.tell(), sha256=sha256)


def is_inside(relative: str) -> bool:
    """Whether a name can be that of a file below the cache."""
    return "\0" not in relative and not {"", ".", ".."} & set(relative.split("/"))


def safe_path(root: Path, relative: str) -> Path:
    """Return the path of a file of the cache, refusing names and links that lead elsewhere.

    Raises:
        CorruptCache: the name leaves the cache, by `..` or by a symbolic link.
    """
    path = root / relative
    parts = relative.split("/")
    if not is_inside(relative):
        raise CorruptCache("A file name leaves the cache.", where=relative)
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), *parts):  # noqa: PTH118
        raise CorruptCache("A file of the cache is a link to elsewhere.", where=str(path))
    return path


@contextmanager
def storing(where: Path | str) -> Iterator[None]:
    """Turn what the disk says inside the block into `StorageError` about a file; nothing committed is lost."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            "A file of the cache could not be written.",
            where=str(where),
            why=f"{reason_of(error)}; everything committed before is intact",
            next_command=again("make room or mend the disk, then give the same command again: it resumes"),
        ) from error
