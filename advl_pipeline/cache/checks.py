"""What is checked when a cache is opened: that it is one, that its files are plain, whole and where they belong."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat as stat_mode
from pathlib import Path

from advl_pipeline.cache.files import WORK_FOLDER, read_small
from advl_pipeline.cache.records import IDENTITY_FILE, Files
from advl_pipeline.errors import ConfigError, CorruptCache


def require_cache(root: Path) -> None:
    """Raise `ConfigError` when a folder holds neither a cache nor a started one."""
    if not (root / IDENTITY_FILE).exists() and not (root / "records").exists():
        raise ConfigError(
            "There is no cache here.",
            where=str(root),
            why="a stopped extraction had not begun to write" if (root / WORK_FOLDER).exists() else "",
            next_command="advl extract --teacher NAME --dataset NAME --split SPLIT "
            f"--output {shlex.quote(str(root))}",
        )


def require_recorded(root: Path, name: str, files: Files) -> bytes:
    """Read a metadata file whose content must be what the commit record says; raises `CorruptCache`."""
    raw = read_small(root, name)
    entry = files.get(name)
    if entry is None or (len(raw), hashlib.sha256(raw).hexdigest()) != (entry.num_bytes, entry.sha256):
        raise CorruptCache(
            "A file of the cache is not what its commit record says.",
            where=str(root / name),
            next_command=f"advl cache repair {root}",
        )
    return raw


def require_sizes(root: Path, files: Files) -> None:
    """Check that every recorded file is there, plain and of its recorded size; raises `CorruptCache`."""
    base = os.path.realpath(root)
    for folder in {name.rpartition("/")[0] for name in files}:
        if ".." in folder.split("/") or os.path.realpath(f"{base}/{folder}").rstrip("/") != f"{base}/{folder}".rstrip(
            "/"
        ):
            raise CorruptCache("A folder of the cache is a link to elsewhere.", where=f"{root}/{folder}")
    for name, entry in files.items():
        try:
            found = os.stat(f"{base}/{name}", follow_symlinks=False)  # noqa: PTH116
        except OSError:
            raise _damaged(root, name, "it is missing") from None
        if not stat_mode.S_ISREG(found.st_mode):
            raise _damaged(root, name, "it is not a plain file")
        if found.st_size != entry.num_bytes:
            raise _damaged(root, name, f"it has {found.st_size} bytes instead of {entry.num_bytes}")


def _damaged(root: Path, name: str, why: str) -> CorruptCache:
    return CorruptCache(
        "A file of the cache is damaged.",
        where=str(root / name),
        why=why,
        next_command=f"advl cache repair {root}",
    )
