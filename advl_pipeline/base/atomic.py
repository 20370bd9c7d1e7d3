"""Atomic file writes: a file is written next to its final path, flushed to disk and renamed into place."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from advl_pipeline.base.errors import ConfigError, StorageError, again
from advl_pipeline.base.locations import not_allowed


@contextmanager
def writing(path: Path | str, *failures: type[Exception]) -> Iterator[None]:
    """Turn disk errors inside the block into `StorageError` naming a path.

    Args:
        failures: exceptions that a library raises instead of `OSError`.
    """
    known: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except known as error:
        if isinstance(error, PermissionError):
            raise not_allowed(Path(error.filename or path), os.W_OK) from error
        raise StorageError(
            "A file could not be written.",
            where=str(path),
            why=f"{reason_of(error)}; what was finished before is intact",
        ) from error


def reason_of(error: Exception) -> str:
    """Return the disk's error message."""
    # safetensors embeds it in a longer message, with the error number at the end.
    named = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(named[1])) if named else getattr(error, "strerror", None) or str(error)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents; raises `StorageError`."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_left(partial: Path) -> None:
    """Remove the partial file or folder that a killed process left, if any."""
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)


def partial_beside(path: Path) -> Path:
    """Return a unique temporary path next to a path, to be renamed into its place."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def require_no_folder(path: Path) -> None:
    """Refuse to write a file in the place of a folder.

    Raises:
        ConfigError: `path` is a folder.
    """
    if path.is_dir():
        raise ConfigError(
            "A file cannot replace a folder.",
            where=str(path),
            next_command=again("name a file in it, then run the same command again"),
        )


@contextmanager
def replacing(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder, which replaces `path` when the block ends.

    Args:
        failures: as for `writing`.

    Raises:
        StorageError: the disk is full or failed. After any error in the block the temporary path is removed.
    """
    partial = partial_beside(path)
    try:
        with writing(path, *failures):
            yield partial
            partial.replace(path)
    except BaseException:
        # A disk that refuses writes may refuse removals too; report the first error.
        with suppress(OSError):
            remove_left(partial)
        raise


@contextmanager
def replacing_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield an open file whose content replaces `path` when the block ends, atomically and durably.

    Readers see the old content or the new, never a mix.

    Raises:
        ConfigError: the path is a folder.
        StorageError: the disk is full or failed; the partial file is removed.
    """
    require_no_folder(path)
    with replacing(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    with writing(path):
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably; raises the errors of `replacing_file`."""
    with replacing_file(path) as file:
        file.write(content)


def give_usual_mode(path: Path) -> None:
    """Give a file the default permissions of a new file in its folder.

    A library that writes through its own temporary file, such as safetensors, makes it readable by its owner only.
    Reading the umask would change it for all threads; creating a new file applies it.
    """
    probe = partial_beside(path)
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        path.chmod(os.fstat(descriptor).st_mode & 0o777)
    finally:
        os.close(descriptor)
        probe.unlink()


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file atomically and durably; raises the errors of `write_bytes`."""
    write_bytes(path, content.encode("utf-8"))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
