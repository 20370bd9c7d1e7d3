"""`advl cache info` and `prune --all` of a cache in an object store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from advl_pipeline.cache.info import CacheInfo, describe_cache
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.records import COMPLETE_RECORD, IDENTITY_FILE, PLAN_RECORD, load_plan
from advl_pipeline.cache.remote_reader import require_remote_cache
from advl_pipeline.cache.remote_verify import fetch_metadata, fetch_object
from advl_pipeline.locations import Url

_CONNECTIONS = 8


def remote_info(url: Url) -> CacheInfo:
    """Summarise a cache under a URL from its metadata; raises as `info.run_info`."""
    store = ObjectStore(url)
    sizes = require_remote_cache(store)
    with TemporaryDirectory(prefix="advl-info-") as scratch:
        root = Path(scratch)
        fetch_metadata(store, root, sizes)
        if PLAN_RECORD in sizes:
            for name in load_plan(root).files:
                if not (root / name).is_file():
                    fetch_object(store, root, name)
        return describe_cache(root, location=url, num_bytes=sum(sizes.values()))


def remove_remote_cache(url: Url, *, dry_run: bool) -> int:
    """Remove all objects of a cache, first what makes it a complete one; returns their bytes."""
    store = ObjectStore(url)
    sizes = require_remote_cache(store)
    if not dry_run:
        store.delete(COMPLETE_RECORD)
        # What makes it a cache at all goes last, so that a removal cut short can be given again.
        last = [name for name in sizes if name.startswith("records/") or name == IDENTITY_FILE]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for names in ([name for name in sizes if name not in last], last):
                list(pool.map(store.delete, names))
    return sum(sizes.values())
