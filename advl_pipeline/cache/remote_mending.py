"""Repair of a cache in an object store: a folder of this process stands for it, and every change is made in both.

Metadata and tables come into the folder at once, shards of token features one at a time and only to be read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from advl_pipeline.cache.disk_cache_config import DiskCacheConfig
from advl_pipeline.cache.files import safe_path
from advl_pipeline.cache.layout import ArraySpec
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.records import confidence_record_path
from advl_pipeline.cache.remote_destination import RemoteDestination
from advl_pipeline.cache.remote_reader import require_remote_cache
from advl_pipeline.cache.remote_verify import fetch_metadata, fetch_object, is_bulk
from advl_pipeline.cache.staged import STAGED_FOLDER, staged_name
from advl_pipeline.cache.verify import VerifyReport
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import CorruptCache
from advl_pipeline.locations import Url

_CONNECTIONS = 8
_LEASE = "plan"


class RemoteMending:
    """A damaged cache in an object store.

    Args:
        destination: the cache, with the lease on its plan.
        sizes: its objects.
    """

    def __init__(self, destination: RemoteDestination, store: ObjectStore, sizes: Mapping[str, int]) -> None:
        self.destination = destination
        self._store = store
        self._sizes = dict(sizes)
        self._staged: dict[str, list[str]] = {}
        for name in sizes:
            if name.startswith(f"{STAGED_FOLDER}/"):
                self._staged.setdefault(name.split("/")[2], []).append(name)

    def remove(self, name: str) -> None:
        self._store.delete(name)
        self._sizes.pop(name, None)
        with suppress(CorruptCache):  # An object may have a name that no file in the folder could have.
            safe_path(self.destination.root, name).unlink(missing_ok=True)

    def clear(self, name: str, *, is_recorded: bool) -> None:
        if not is_recorded:
            self.remove(name)

    def remove_confidence(self, key: str) -> None:
        self.remove(confidence_record_path(key))
        folder = f"confidence/{key}/"
        if not any(name.startswith("records/confidence-") for name in self._sizes):
            folder = "confidence/"
        for name in [name for name in self._sizes if name.startswith(folder)]:
            self.remove(name)

    def restore(self, name: str, content: bytes) -> None:
        path = self.destination.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._store.settle(name, path)

    @contextmanager
    def holding(self, names: Sequence[str]) -> Iterator[None]:
        missing = [name for name in names if not (self.destination.root / name).is_file()]
        try:
            for name in missing:
                fetch_object(self._store, self.destination.root, name)
            yield
        finally:
            for name in missing:
                (self.destination.root / name).unlink(missing_ok=True)

    def is_staged(self, writer: CacheWriter, modality: str, shard: int) -> bool:
        try:
            with self.holding(self._staged.get(staged_name(modality, shard), [])):
                return writer.staged(modality).is_sound(shard)
        except CorruptCache:  # One of its objects is gone since they were listed.
            return False

    def stage(self, writer: CacheWriter, modality: str, shard: int, stats: Mapping[str, ArraySpec]) -> None:
        writer.staged(modality).keep(shard, writer.content_from_tables(modality, shard, stats))
        self.destination.publish_staged(modality, shard, lease=_LEASE)
        shutil.rmtree(self.destination.root / STAGED_FOLDER)


@contextmanager
def open_remote_mending(url: Url, report: VerifyReport, disk_cache: DiskCacheConfig) -> Iterator[RemoteMending]:
    """Open a damaged cache under a URL; see `mending.open_mending`."""
    with RemoteDestination(url, disk_cache) as destination, destination.claim(_LEASE, wait=True):
        store = ObjectStore(url)
        sizes = store.list()
        fetch_metadata(store, destination.root, sizes)
        tables = [
            name
            for name, entry in report.files.items()
            if not name.endswith(".json")
            and (not is_bulk(name) or "/tokens/" not in name)
            and sizes.get(name) == entry.num_bytes
        ]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(lambda name: fetch_object(store, destination.root, name), tables))
        yield RemoteMending(destination, store, sizes)


@contextmanager
def remote_metadata(url: Url) -> Iterator[Path]:
    """Have the JSON files of a cache under a URL in a folder within the block.

    Raises:
        ConfigError: there is neither a cache nor a started one.
        StorageError: the store refuses access or cannot be reached.
    """
    store = ObjectStore(url)
    sizes = require_remote_cache(store)
    with TemporaryDirectory(prefix="advl-metadata-") as scratch:
        root = Path(scratch)
        fetch_metadata(store, root, sizes)
        yield root
