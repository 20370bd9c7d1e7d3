"""A student's source of a detector's regions, from caches (`region_caches.py`).

Shapes: R regions, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from advl_pipeline.base.errors import ConfigError, DatasetError, advise, ineffective
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.stored_inputs.source import OfCaches
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import WHOLE_POSITION_17, Regions, RegionSource
from advl_pipeline.students.region_student import RegionStudent


class CachedRegions(OfCaches, RegionSource):
    """A source of regions from caches, whose features have the width that the student expects."""

    def __init__(self, caches: Sequence[TeacherCache], feature_size: int) -> None:
        super().__init__(caches, feature_size)
        self.feature_size = feature_size

    def regions(self, unit: ImageUnit) -> Regions:
        """Return the regions in the order of their files, after the whole picture if the cache has it.

        Raises:
            DatasetError: no cache contains the picture.
        """
        ids = [unit.unit_id]
        for cache, store in self._stores:
            if not store.contains(ids)[0]:
                continue
            stored = store.token_columns(ids)
            boxes_R6 = stored["boxes"]
            # Copy, because torch warns about read-only arrays such as memory maps.
            features_RF = np.array(store.token_features(ids)[0])
            positions_R7 = np.concatenate([boxes_R6, boxes_R6[:, 4:5] * boxes_R6[:, 5:]], axis=1)
            box_index_R = stored["box_index"].astype(np.int64)
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


def use_region_caches(student: Student, caches: Sequence[TeacherCache]) -> list[str]:
    """Let a student see the regions in caches, and return a line about each cache.

    Args:
        student: whose source of regions is replaced if there are caches.
        caches: as `region_caches.open_region_caches` opens them.

    Raises:
        ConfigError: the student sees no regions, or regions of another width, or requires a detector's regions and
            there are none.
        CorruptCache: a cache is damaged.
    """
    if not isinstance(student, RegionStudent):
        if caches:
            raise ineffective("--regions", why=f"{student.name} sees no regions of a detector")
        return []
    for cache in caches:
        require_trustworthy(cache)
        assert cache.image is not None
        if cache.image.token_dim != student.config.feature_size:
            raise ConfigError(
                f"The student takes region features of width {student.config.feature_size}, and the cache has "
                f"width {cache.image.token_dim}.",
                where=str(cache.path),
            )
    if caches:
        student.regions = CachedRegions(caches, student.config.feature_size)
    student.region_source()
    return [f"regions: of {len(cache.image or ()):,} pictures, from {cache.path}" for cache in caches]
