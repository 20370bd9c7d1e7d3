"""Configurations of the commands that need only a cache, and the folder for remote caches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.base.configuration import Configuration, Output, option
from advl_pipeline.base.locations import Location, user_cache

ENVIRONMENT_VARIABLE = "ADVL_DISK_CACHE"


def disk_cache_folder() -> Path:
    """Return the folder that keeps what is read of remote caches."""
    folder = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(folder) if folder else user_cache()


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
