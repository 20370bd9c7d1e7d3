"""Files of an index: written atomically, each with a digest of its content.

Training uses the numbers of an index directly, so a damaged or modified file is rejected.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from advl_pipeline.base.errors import DatasetError, again
from advl_pipeline.datasets.roots import INDEX_VARIABLE

PICTURES_FOLDER = "pictures"
"""Folder below the index for pictures from tables, named by the digest of their bytes."""

_DRAFT = ".draft"
SEAL_BYTES = hashlib.sha256().digest_size
"""Length of the digest at the end of a sealed file."""

Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, modification time and change time, which identify an unchanged file."""


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file; raises `OSError` if it does not exist."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextmanager
def index_draft(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to a file of an index, so that readers see the complete file or none.

    Raises:
        DatasetError: the folder cannot be written.
    """
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_DRAFT}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(draft):
            yield draft
            draft.replace(path)
    except OSError as error:
        raise _not_written(path.parent, error) from None
    finally:
        with suppress(OSError):
            draft.unlink()


def _held(draft: Path) -> IO[bytes]:
    """Open and lock a draft against `remove_drafts` of another process, which keeps all drafts without file locks."""
    while True:
        file = draft.open("wb")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # It was removed between the two calls.


def remove_drafts(folder: Path) -> None:
    """Remove the drafts of killed processes below a folder."""
    for draft in folder.rglob(f"*{_DRAFT}"):
        # Another process may finish or remove it at any moment.
        with suppress(OSError), draft.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()


def make_index_folder(folder: Path, sources: Iterable[Path]) -> None:
    """Create the folder of an index, readable only by users who can read all of its sources.

    Raises:
        DatasetError: the folder cannot be created.
    """
    mode = 0o777
    for status in map(Path.stat, sources):
        for reading, all_of in ((0o040, 0o070), (0o004, 0o007)):
            mode &= ~(0 if status.st_mode & reading else all_of)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        open_to = folder.stat().st_mode & 0o777
        if open_to & ~mode:
            folder.chmod(open_to & mode)
    except OSError as error:
        raise _not_written(folder, error) from None


def keep(path: Path, content: bytes) -> None:
    """Write a file atomically unless it exists; its name identifies its content."""
    if not path.is_file():
        with index_draft(path) as draft:
            draft.write_bytes(content)


def seal_index(draft: Path, name: str) -> None:
    """Append the digest of a file's content to the file.

    Args:
        draft: the file.
        name: final name of the file. The digest includes it, so that a file under another name is rejected.
    """
    with draft.open("r+b") as file:
        file.write(_digest(file, draft.stat().st_size, name))


def sealed_size(path: Path) -> int:
    """Return the number of bytes of a sealed file before its seal.

    Raises:
        ValueError: the content does not match the seal. OSError: the file cannot be read.
    """
    size = path.stat().st_size - SEAL_BYTES
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    with path.open("rb") as file:
        if size <= 0 or _digest(file, size, path.name) != file.read():
            raise ValueError(f"{path} is not what was written")
    return size


def _digest(file: IO[bytes], size: int, name: str) -> bytes:
    state = hashlib.sha256(name.encode())
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        state.update(part)
        size -= len(part)
    return state.digest()


def _not_written(folder: Path, error: OSError) -> DatasetError:
    return DatasetError(
        "The index of a dataset cannot be written.",
        where=str(folder),
        why=error.strerror or str(error),
        next_command=again(f"set {INDEX_VARIABLE} to a folder that can be written, then run the same command"),
    )
