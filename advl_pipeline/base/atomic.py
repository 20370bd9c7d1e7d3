"""Files that are either whole or absent: written next to their place, flushed to disk, renamed into it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from advl_pipeline.base.errors import ConfigError, StorageError, again


@contextmanager
def writing(path: Path | str, *failures: type[Exception]) -> Iterator[None]:
    """Turn what the disk says inside the block into `StorageError` about a path.

    Args:
        failures: what a library raises instead of `OSError`.
    """
    known: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except known as error:
        why = f"{reason_of(error)}; what was finished before is intact"
        raise StorageError("A file could not be written.", where=str(path), why=why) from error


def reason_of(error: Exception) -> str:
    """Return what the disk said, in words."""
    # safetensors says it among others, with its number at the end.
    named = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(named[1])) if named else getattr(error, "strerror", None) or str(error)


def make_folder(path: Path) -> None:
    """Create a folder and those above it where they are missing; raises `StorageError`."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_left(partial: Path) -> None:
    """Remove what a killed process left of a file or of a folder; nothing where there is nothing."""
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)


def partial_beside(path: Path) -> Path:
    """Return a name next to a path that is written to before it takes the path's place, and that is nobody else's."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def require_no_folder(path: Path) -> None:
    """Refuse to write a file where a folder is.

    Raises:
        ConfigError: `path` is a folder.
    """
    if path.is_dir():
        advice = again("name a file in it, then run the same command again")
        raise ConfigError("A file cannot replace a folder.", where=str(path), next_command=advice)


@contextmanager
def replacing(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Yield a name next to a path, to write a file or a folder to; it takes the path's place when the block ends.

    Args:
        failures: as `writing` takes them.

    Raises:
        StorageError: the disk is full or failed. Then, and whatever else ends the block, nothing is left of it.
    """
    partial = partial_beside(path)
    try:
        with writing(path, *failures):
            yield partial
            partial.replace(path)
    except BaseException:
        # A disk that refuses to write may refuse to remove as well; what it said first is what counts.
        with suppress(OSError):
            remove_left(partial)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably; readers see the old content or the new, never a part.

    Raises:
        ConfigError: a folder is there.
        StorageError: the disk is full or failed; the part that was written is removed.
    """
    require_no_folder(path)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with writing(path):
        sync_folder(path.parent)


def give_usual_mode(path: Path) -> None:
    """Let others read a file as they read any new file in its folder.

    A library that wrote it under a name of its own, as safetensors does, left it to its owner alone. The umask cannot
    be asked for without changing it for all threads; a new file has it applied.
    """
    probe = partial_beside(path)
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        path.chmod(os.fstat(descriptor).st_mode & 0o777)
    finally:
        os.close(descriptor)
        probe.unlink()


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file atomically and durably; raises what `write_bytes` does."""
    write_bytes(path, content.encode("utf-8"))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
