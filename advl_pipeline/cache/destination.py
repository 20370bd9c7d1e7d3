"""Where a cache is written: a folder, or an object store with a folder that stands for it in one process.

`CacheWriter` works on `root`. A destination adds what it cannot know: what other processes have committed, and how
what this one committed becomes visible to them. In a folder both hold by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from advl_pipeline.cache.claims import claim
from advl_pipeline.cache.disk_cache_config import DiskCacheConfig
from advl_pipeline.cache.files import remove_work
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.folders import require_folder
from advl_pipeline.locations import Location, Url


class Destination(Protocol):
    """One process's hold on a cache that is being written."""

    @property
    def location(self) -> Location:
        """The cache, as the user named it."""
        ...

    @property
    def root(self) -> Path:
        """The folder that a `CacheWriter` works on."""
        ...

    def claim(self, name: str, *, wait: bool = False) -> AbstractContextManager[bool]:
        """Claim a piece of work; see `claims.claim`."""
        ...

    def refresh(self) -> None:
        """Learn what is committed by now."""
        ...

    def publish_plan(self) -> None:
        """Show the plan that was written to `root`, under the claim "plan"."""
        ...

    def publish_shard(self, modality: str, shard: int) -> None:
        """Show a shard that was committed in `root`, under its claim."""
        ...

    def gather(self) -> None:
        """Bring what all shards add to the tables into `root`, under the claim "finalise".

        Where another process has completed the cache meanwhile, its records instead.
        """
        ...

    def publish_complete(self) -> None:
        """Show the tables and the complete record that were written to `root`, under the claim "finalise"."""
        ...

    def remove_work(self) -> None:
        """Remove work in progress once the cache is complete."""
        ...

    def open(self, identity: Mapping[str, Any]) -> TeacherCache:
        """Open the complete cache."""
        ...


class FolderDestination:
    """A folder that all processes see: kernel locks claim, renames publish."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location: Location = root

    def claim(self, name: str, *, wait: bool = False) -> AbstractContextManager[bool]:
        return claim(self.root, name, wait=wait)

    def refresh(self) -> None:
        return

    def publish_plan(self) -> None:
        return

    def publish_shard(self, modality: str, shard: int) -> None:
        return

    def gather(self) -> None:
        return

    def publish_complete(self) -> None:
        return

    def remove_work(self) -> None:
        remove_work(self.root)

    def open(self, identity: Mapping[str, Any]) -> TeacherCache:
        return open_cache(self.root, identity)


@contextmanager
def open_destination(location: Location, disk_cache: DiskCacheConfig) -> Iterator[Destination]:
    """Open the place that a cache is written to.

    Args:
        location: folder or URL.
        disk_cache: where a process keeps what it reads from, and has yet to write to, an object store.

    Raises:
        ConfigError: the folder holds something else than a cache.
    """
    if isinstance(location, Url):
        from advl_pipeline.cache.remote_destination import RemoteDestination

        with RemoteDestination(location, disk_cache) as remote:
            yield remote
    else:
        require_folder(location, "cache")
        yield FolderDestination(location)
