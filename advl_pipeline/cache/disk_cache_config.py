"""Where files of remote caches are kept on this machine, and how much of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "ADVL_DISK_CACHE"

DEFAULT_GB = 50.0
"""How much the disk cache may hold by default."""


def default_disk_cache() -> Path:
    """Return the folder that remote caches are read through by default."""
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advl"


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskCacheConfig:
    """Where files of remote caches are kept, and how many bytes of them at most."""

    folder: Path
    max_bytes: int


def disk_cache_config(folder: Path | None = None, gigabytes: float = DEFAULT_GB) -> DiskCacheConfig:
    """Return the configuration that the options `--disk-cache` and `--disk-cache-gb` describe."""
    return DiskCacheConfig(folder=folder or default_disk_cache(), max_bytes=int(gigabytes * 1e9))
