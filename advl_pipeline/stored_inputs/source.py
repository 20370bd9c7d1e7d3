"""The base class of what a student reads from caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.datasets.records import ImageUnit


class OfCaches:
    """Pictures with entries in caches, looked up by the digest of their content."""

    def __init__(self, caches: Sequence[TeacherCache], size: int) -> None:
        self._caches, self._size = caches, size
        self._stores = [(cache, cache.image) for cache in caches if cache.image is not None]

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps are not copied with the student; a copy opens the caches itself.
        return type(self), (self._caches, self._size)

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Announce the pictures' entries to the kernel for read-ahead."""
        ids = [unit.unit_id for unit in units]
        for _, store in self._stores:
            store.announce([name for name, held in zip(ids, store.contains(ids), strict=True) if held])

    def begin_epoch(self) -> None:
        """Check the available memory again."""
        for _, store in self._stores:
            store.begin_epoch()
