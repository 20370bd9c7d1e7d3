"""Which store a cache lies in, a folder or a bucket: the one place that asks.

Under a URL every object is written under its final name by one PUT, and a record after what it lists. A record is
created on the condition that there is none, so nothing is committed twice. An object that is there already is kept if
it is the same to the byte, and otherwise replaced.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from advl_pipeline.cache.checks import require_sizes
from advl_pipeline.cache.commit_records import IDENTITY_FILE
from advl_pipeline.cache.config import DiskCacheConfig, DiskCacheOptions
from advl_pipeline.cache.disk_cache import DiskCache
from advl_pipeline.cache.files import WORK_FOLDER, Buffer, FileEntry, Files, entry_of, is_inside, storing
from advl_pipeline.cache.folder_store import FolderStore
from advl_pipeline.cache.object_store import ObjectStore, require_conditional_writes
from advl_pipeline.cache.store import Readable, Stamp, Store
from advl_pipeline.errors import ConfigError
from advl_pipeline.locations import Location, Url

_CONNECTIONS = 8
_KEY_DIGITS = 32
_LARGEST_PUT = 5 << 30

_log = logging.getLogger(__name__)


class BucketStore(Store):
    """The objects under a URL.

    Args:
        disk_cache: where files are kept that are read, or mapped of an unfinished cache.
    """

    reads_whole = True
    max_file_bytes = _LARGEST_PUT

    def __init__(self, url: Url, disk_cache: DiskCacheConfig | None = None) -> None:
        self.location = url
        self._objects = ObjectStore(url)
        self._disk_cache = disk_cache or DiskCacheOptions().disk_cache_config
        key = hashlib.sha256(str(url).encode()).hexdigest()[:_KEY_DIGITS]
        self.locks = self._disk_cache.folder / "locks" / key

    def get(self, name: str) -> bytes:
        return self._objects.get(name)

    @contextmanager
    def opened(self, name: str, *, release: Callable[[], None] = lambda: None) -> Iterator[int]:
        scratch = self._disk_cache.folder / "writing"
        with storing(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            # Without a name: it is gone with its last map, however the process ends.
            with tempfile.TemporaryFile(dir=scratch) as file:
                for block in self._objects.stream(name):
                    file.write(block)
                file.seek(0)
                yield file.fileno()

    def list(self, folder: str = "") -> dict[str, int]:
        return self._objects.list(folder)

    def put(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if not self._objects.create(name, body) and self._objects.get(name) != body:
            self._objects.replace(name, body)
        return entry_of(body)

    def settle(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        body = b"".join(parts)
        return entry_of(body if self._objects.create(name, body) else self._objects.get(name))

    def prepare_writing(self) -> None:
        require_conditional_writes(self._objects, f"{WORK_FOLDER}/probe-{secrets.token_hex(8)}")

    def delete(self, *names: str) -> None:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(self._objects.delete, filter(is_inside, names)))

    def delete_under(self, folder: str = "") -> None:
        self.delete(*self.list(folder))

    def require_place(self) -> None:
        names = [name for name in self.list() if not name.startswith(f"{WORK_FOLDER}/")]
        if names and not any(name == IDENTITY_FILE or name.startswith("records/") for name in names):
            raise ConfigError(
                "This place cannot take a teacher cache.",
                where=str(self.location),
                why=f"it is not empty and has no {IDENTITY_FILE}, by which a teacher cache is known: {min(names)}",
                next_command="give another --output",
            )

    def changed(self, files: Files) -> dict[str, Stamp]:
        return {}

    def vouch(self, stamps: Mapping[str, Stamp]) -> None:
        return

    def reading(self, record: bytes, files: Files) -> Readable:
        require_sizes(self, self.list(), files)
        config = self._disk_cache
        num_bytes = sum(entry.num_bytes for entry in files.values())
        if num_bytes > config.max_bytes:
            _log.warning(
                "%s has %.1f GB, the disk cache may hold %.1f: shards will be fetched again and again.",
                self.location,
                num_bytes / 1e9,
                config.max_bytes / 1e9,
            )
        cached = DiskCache(self._objects, config, key=hashlib.sha256(record).hexdigest()[:_KEY_DIGITS])
        cached.expect(files)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(cached.get, (name for name in files if name.endswith("/zarr.json"))))
        return cached


def open_store(location: Location, disk_cache: DiskCacheConfig | None = None) -> Store:
    """Return the store at a location; nothing is asked of it yet.

    Args:
        location: folder or URL.
        disk_cache: where, and within which bound, this machine keeps files that lie elsewhere
            [default: `config.default_disk_cache`, `config.DEFAULT_GB`].
    """
    return BucketStore(location, disk_cache) if isinstance(location, Url) else FolderStore(location)
