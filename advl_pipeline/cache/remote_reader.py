"""Opening a cache in an object store: metadata now, shards through the disk cache when they are first read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from advl_pipeline.cache.disk_cache import DiskCache
from advl_pipeline.cache.disk_cache_config import DiskCacheConfig, disk_cache_config
from advl_pipeline.cache.object_store import MissingObject, ObjectStore
from advl_pipeline.cache.reader import TeacherCache, assemble_cache
from advl_pipeline.cache.records import COMPLETE_RECORD, IDENTITY_FILE, Files, load_complete
from advl_pipeline.errors import ConfigError, CorruptCache
from advl_pipeline.locations import Url

_CONNECTIONS = 8
_KEY_DIGITS = 32

_log = logging.getLogger(__name__)


def open_remote_cache(
    url: Url, expect: Mapping[str, Any] | None, config: DiskCacheConfig | None = None
) -> TeacherCache:
    """Open a complete cache under a URL; see `reader.open_cache`.

    Raises:
        ConfigError: there is no cache, or the extra `s3` is not installed.
        IdentityMismatch: the cache was made under other settings.
        CorruptCache: the extraction was not finished, or an object is missing, cut short or changed.
        StorageError: the store refuses access or cannot be reached.
    """
    config = config or disk_cache_config()
    store = ObjectStore(url)
    raw = read_complete(store)
    files = DiskCache(store, config, key=hashlib.sha256(raw).hexdigest()[:_KEY_DIGITS])
    files.put_small(COMPLETE_RECORD, raw)
    try:
        complete = load_complete(files.root)
    except CorruptCache as error:
        raise CorruptCache(error.what, where=f"{url}/{COMPLETE_RECORD}", why=error.why) from None
    _require_sizes(store, complete.files)
    files.expect(complete.files)
    num_bytes = sum(entry.num_bytes for entry in complete.files.values())
    if num_bytes > config.max_bytes:
        _log.warning(
            "%s has %.1f GB, the disk cache may hold %.1f: shards will be fetched again and again.",
            url,
            num_bytes / 1e9,
            config.max_bytes / 1e9,
        )
    small = [name for name in complete.files if name.endswith(".json")]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(files.require_small, small))
    return assemble_cache(files.root, complete, expect, location=url, remote=files, disk_cache=config)


def read_complete(store: ObjectStore) -> bytes:
    """Return the complete record of a cache.

    Raises:
        ConfigError: there is no cache.
        CorruptCache: there is one, but it is not finished.
    """
    try:
        return store.get(COMPLETE_RECORD)
    except MissingObject:
        require_remote_cache(store)
        raise CorruptCache(
            "The extraction of this cache was not finished.",
            where=str(store.url),
            next_command="give the command that began it again: it resumes",
        ) from None


def require_remote_cache(store: ObjectStore) -> dict[str, int]:
    """Return the sizes of all objects; raises `ConfigError` where there is neither a cache nor a started one."""
    sizes = store.list()
    if IDENTITY_FILE not in sizes and not any(name.startswith("records/") for name in sizes):
        raise ConfigError(
            "There is no cache here.",
            where=str(store.url),
            next_command=f"advl extract --teacher NAME --dataset NAME --split SPLIT --output {store.url}",
        )
    return sizes


def _require_sizes(store: ObjectStore, files: Files) -> None:
    sizes = store.list()
    for name, entry in files.items():
        found = sizes.get(name)
        if found != entry.num_bytes:
            raise CorruptCache(
                "An object of the cache is damaged.",
                where=f"{store.url}/{name}",
                why="it is missing" if found is None else f"it has {found} bytes instead of {entry.num_bytes}",
                next_command=f"advl cache repair {store.url}",
            )
