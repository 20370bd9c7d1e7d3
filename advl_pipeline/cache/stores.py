"""Which store a cache lies in: the one place that asks."""

from __future__ import annotations

from advl_pipeline.cache.bucket_store import BucketStore
from advl_pipeline.cache.config import DiskCacheConfig
from advl_pipeline.cache.folder_store import FolderStore
from advl_pipeline.cache.store import Store
from advl_pipeline.locations import Location, Url


def open_store(location: Location, disk_cache: DiskCacheConfig | None = None) -> Store:
    """Return the store at a location; nothing is asked of it yet.

    Args:
        location: folder or URL.
        disk_cache: where, and within which bound, this machine keeps files that lie elsewhere
            [default: `config.default_disk_cache`, `config.DEFAULT_GB`].
    """
    return BucketStore(location, disk_cache) if isinstance(location, Url) else FolderStore(location)
