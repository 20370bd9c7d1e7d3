"""Configurations of the commands that need only a cache, and of the disk cache for remote caches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from advl_pipeline.base.configuration import Configuration, Output, option, rare_option
from advl_pipeline.base.locations import Location, user_cache

ENVIRONMENT_VARIABLE = "ADVL_DISK_CACHE"

DEFAULT_GB = 50.0
"""Default size limit of the disk cache."""


def disk_cache_folder() -> Path:
    """Return the folder that remote caches are read through."""
    folder = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(folder) if folder else user_cache()


@dataclass(frozen=True, kw_only=True)
class DiskCacheOptions(Configuration):
    """Location and size of the disk cache for remote caches."""

    title: ClassVar[str] = "Remote caches"

    disk_cache_gb: float = rare_option(
        DEFAULT_GB,
        help=f"Size limit of the disk cache for remote caches, ${ENVIRONMENT_VARIABLE}.",
        above=0,
        identity="none",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class InfoConfig(Configuration):
    """Configuration of `advl cache info`."""

    cache: Location = option(help="Folder or URL of the cache.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig(Configuration):
    """Configuration of `advl cache export`."""

    cache: Path = option(help="Folder of the cache.")
    to: Literal["hdf5", "safetensors"] = option("hdf5", help="Format to write.")
    output: Path = option(
        help="File (hdf5) or folder (safetensors) to write; must not exist.",
        such_as="features.h5",
        output=Output(makes="new"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig(Configuration):
    """Configuration of `advl cache prune`."""

    cache: Location = option(help="Folder or URL of the cache.")
    all_confidences: bool = option(False, help="Remove every set of confidences.")
    all: bool = option(False, help="Remove the entire cache.")
    dry_run: bool = option(False, help="Only print what would be removed.")
