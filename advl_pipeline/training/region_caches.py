"""A student's regions from caches that `advl cache import` made of a detector's files.

Pictures are asked for by the digest of their content, so that any of the caches may hold one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import ConfigError, DatasetError, advise
from advl_pipeline.locations import Location, parse_location
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import WHOLE_POSITION_17, Regions, RegionSource
from advl_pipeline.students.region_student import RegionStudent


class CachedRegions(RegionSource):
    """The source over caches of regions, whose features are as wide as the student expects."""

    def __init__(self, caches: Sequence[TeacherCache], feature_size: int) -> None:
        self.feature_size = feature_size
        self._caches = caches
        self._stores = [(cache, cache.image) for cache in caches if cache.image is not None]

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps are not copied with the student; a copy opens the caches itself.
        return CachedRegions, (self._caches, self.feature_size)

    def regions(self, unit: ImageUnit) -> Regions:
        """Return the regions in the order of their files; before them the whole picture where they have it.

        Raises:
            DatasetError: no cache holds the picture.
        """
        ids = [unit.unit_id]
        for cache, store in self._stores:
            if not store.contains(ids)[0]:
                continue
            found = store.regions(ids)
            boxes_R6 = found["boxes"]
            # A copy: torch warns about arrays that cannot be written to, which a map is.
            features_RF = np.array(found["values"])
            positions_R7 = np.concatenate([boxes_R6, boxes_R6[:, 4:5] * boxes_R6[:, 5:]], axis=1)
            box_index_R = found["box_index"].astype(np.int64)
            has_whole = cache.identity["teacher"]["image"]["global"] == "as given"
            if has_whole:
                features_RF = np.concatenate([store.global_features(ids), features_RF])
                positions_R7 = np.concatenate([WHOLE_POSITION_17, positions_R7])
                box_index_R = np.concatenate([np.array([-1]), box_index_R])
            return Regions(
                features_RF=features_RF, positions_R7=positions_R7, box_index_R=box_index_R, whole_first=has_whole
            )
        raise DatasetError(
            "A picture has no region features.",
            where=str(unit.path),
            why=f"it is not in {', '.join(str(cache.path) for cache in self._caches)}",
            next_command=advise(
                "advl cache import FILE --name NAME --dataset NAME --split SPLIT".split(),
                note="of its split, then add --regions CACHE",
            ),
        )

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Let the kernel read the regions ahead."""
        ids = [unit.unit_id for unit in units]
        for _, store in self._stores:
            store.announce([name for name, held in zip(ids, store.contains(ids), strict=True) if held])

    def begin_epoch(self) -> None:
        """Look anew at the memory there is."""
        for _, store in self._stores:
            store.begin_epoch()


def regions_of_run(trained_on: Mapping[str, Any]) -> list[Location]:
    """Return the caches of regions that a run was given, from its plain configuration; 0.2 stored one path."""
    stored = trained_on.get("regions") or []
    return list(map(parse_location, [stored] if isinstance(stored, str) else stored))


def use_region_caches(student: Student, caches: Sequence[TeacherCache], *, hash_all: bool = False) -> list[str]:
    """Let a student see the regions in caches, and return a line about each of them.

    Args:
        student: whose source of regions is replaced, where there are any.
        caches: as `given.open_region_caches` opens them.
        hash_all: hash every file before it is trusted.

    Raises:
        ConfigError: the student sees no regions, or such of another width, or those of a detector and there are none.
        CorruptCache: a cache is damaged.
    """
    if not isinstance(student, RegionStudent):
        if caches:
            raise ConfigError(
                f"{student.name} sees no regions of a detector.",
                where=str(caches[0].path),
                next_command="leave out --regions",
            )
        return []
    for cache in caches:
        require_trustworthy(cache, hash_all=hash_all)
        assert cache.image is not None
        if cache.image.token_dim != student.config.feature_size:
            raise ConfigError(
                "The region features have another width than the student expects.",
                where=str(cache.path),
                why=f"{cache.image.token_dim} in the cache, feature_size = {student.config.feature_size}",
            )
    if caches:
        student.regions = CachedRegions(caches, student.config.feature_size)
    student.region_source()
    return [f"regions: of {len(cache.image or ()):,} pictures, from {cache.path}" for cache in caches]
