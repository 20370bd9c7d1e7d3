"""What repair does to a cache where it lies: take away what is bad, keep what sound shards add to the tables."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from advl_pipeline.cache.confidence import remove_confidence
from advl_pipeline.cache.destination import Destination, FolderDestination
from advl_pipeline.cache.disk_cache_config import DiskCacheConfig
from advl_pipeline.cache.files import publish_if_changed
from advl_pipeline.cache.layout import ArraySpec
from advl_pipeline.cache.verify import VerifyReport
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.locations import Location, Url


class Mending(Protocol):
    """One process's hold on a damaged cache. `destination.root` holds its metadata and tables, damaged ones too."""

    @property
    def destination(self) -> Destination:
        """The cache, with the claim on its plan."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is missing is no error."""
        ...

    def clear(self, name: str, *, is_recorded: bool) -> None:
        """Remove what stands under a bad file's name if no file should, or if it is no plain file."""
        ...

    def remove_confidence(self, key: str) -> None:
        """Remove a set of confidences, its record first."""
        ...

    def restore(self, name: str, content: bytes) -> None:
        """Have a file hold what it must hold."""
        ...

    def holding(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Have sound shard files under `destination.root` within the block."""
        ...

    def is_staged(self, writer: CacheWriter, modality: str, shard: int) -> bool:
        """Whether a stopped run left what a shard adds to the tables, as it was written."""
        ...

    def stage(self, writer: CacheWriter, modality: str, shard: int, stats: Mapping[str, ArraySpec]) -> None:
        """Keep what a committed shard adds to the tables, read back from sound files."""
        ...


class FolderMending:
    """A damaged cache in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.destination: Destination = FolderDestination(root)

    def remove(self, name: str) -> None:
        path = self._root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def clear(self, name: str, *, is_recorded: bool) -> None:
        path = self._root / name
        for folder in reversed(path.parents):
            if folder != self._root and self._root in folder.parents and folder.is_symlink():
                folder.unlink()
        if path.is_symlink() or (path.is_file() and not is_recorded):
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)

    def remove_confidence(self, key: str) -> None:
        remove_confidence(self._root, key)

    def restore(self, name: str, content: bytes) -> None:
        publish_if_changed(self._root, name, [content])

    def holding(self, names: Sequence[str]) -> AbstractContextManager[None]:
        return nullcontext()

    def is_staged(self, writer: CacheWriter, modality: str, shard: int) -> bool:
        return writer.staged(modality).is_sound(shard)

    def stage(self, writer: CacheWriter, modality: str, shard: int, stats: Mapping[str, ArraySpec]) -> None:
        writer.staged(modality).keep(shard, writer.content_from_tables(modality, shard, stats))


@contextmanager
def open_mending(location: Location, report: VerifyReport, disk_cache: DiskCacheConfig) -> Iterator[Mending]:
    """Open a damaged cache for repair.

    Args:
        location: folder or URL.
        report: what verification found.
        disk_cache: where a process keeps what it reads from an object store.
    """
    if isinstance(location, Url):
        from advl_pipeline.cache.remote_mending import open_remote_mending

        with open_remote_mending(location, report, disk_cache) as remote:
            yield remote
    else:
        yield FolderMending(location)
