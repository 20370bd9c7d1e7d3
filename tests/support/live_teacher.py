"""A live teacher with the interface of a cache, for tests that both give the same loss.

The teacher runs on the units of each batch on demand. Standardisation still uses the cache's moments, which need a
pass over the complete split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.reader import FeatureStore, TeacherCache
from advl_pipeline.datasets.records import Dataset, ImageUnit, TextUnit
from advl_pipeline.teachers.interface import ImageTower, PreparedUnit, TextTower, Tower
from advl_pipeline.teachers.registry import open_teacher
from advl_pipeline.training.signals.averages import TeacherGrid
from advl_pipeline.training.signals.teacher_features import Array, TeacherFeatures, UnitFeatures, cached_teacher


class LiveFeatures(UnitFeatures):
    """Features encoded on first request; dimensions and moments are the cache's."""

    def __init__(self, store: FeatureStore, tower: Tower, prepare: Mapping[str, ImageUnit | TextUnit]) -> None:
        super().__init__(store)
        self._tower = tower
        self._units = prepare
        self._encoded: dict[str, tuple[Array, Array]] = {}

    def global_features(self, ids: Sequence[str]) -> Array:
        """Return (Q, D) float32."""
        self._encode(ids)
        return np.stack([self._encoded[unit][0] for unit in ids])

    def token_features(self, ids: Sequence[str]) -> tuple[Array, npt.NDArray[np.int32]]:
        """Return (M, D) float32 rows, unit after unit, and the (Q,) row counts."""
        self._encode(ids)
        rows = [self._encoded[unit][1] for unit in ids]
        return np.concatenate(rows), np.array([len(row) for row in rows], dtype=np.int32)

    def stored_tokens(self, ids: Sequence[str]) -> tuple[Array, None, npt.NDArray[np.int32]]:
        """Return the same as `token_features`; a live teacher stores no codes."""
        rows, lengths = self.token_features(ids)
        return rows, None, lengths

    def char_spans(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the character span of each token row, (M, 2)."""
        return np.concatenate([unit.char_spans_M2 for unit in self._prepare(ids)])

    def _encode(self, ids: Sequence[str]) -> None:
        missing = [unit for unit in dict.fromkeys(ids) if unit not in self._encoded]
        if not missing:
            return
        encoded = self._tower.encode(self._prepare(missing))
        for place, unit in enumerate(missing):
            self._encoded[unit] = (encoded.global_ND[place].numpy(), encoded.token_values[place].numpy())

    def _prepare(self, ids: Sequence[str]) -> list[PreparedUnit]:
        units = [self._units[unit] for unit in ids]
        images = [unit for unit in units if isinstance(unit, ImageUnit)]
        if images:
            tower: ImageTower = self._tower  # type: ignore[assignment]
            return [tower.prepare(unit) for unit in images]
        texts: TextTower = self._tower  # type: ignore[assignment]
        return texts.prepare([unit for unit in units if isinstance(unit, TextUnit)])


def live_teacher(cache: TeacherCache, dataset: Dataset) -> TeacherFeatures:
    """Open the teacher of a cache as a replacement for the cache."""
    identity = cache.identity["teacher"]
    grid = TeacherGrid.of_description(identity["image"]) if identity["image_tokens"] == "grid" else None
    teacher = open_teacher(
        identity["name"],
        weights=None,
        device="cpu",
        image_tokens=identity["image_tokens"] or "none",
        grid_side=None if grid is None else max(grid.rows, grid.columns),
        dtype=identity["compute_dtype"],
    )
    image = text = None
    if cache.image is not None and teacher.image is not None:
        image = LiveFeatures(cache.image, teacher.image, {unit.unit_id: unit for unit in dataset.image_units()})
    if cache.text is not None and teacher.text is not None:
        text = LiveFeatures(cache.text, teacher.text, {unit.unit_id: unit for unit in dataset.text_units()})
    return replace(cached_teacher(cache), image=image, text=text)


@contextmanager
def teachers_run(dataset: Dataset, *, opened: dict[str, TeacherFeatures] | None = None) -> Iterator[None]:
    """Make runs use live teachers instead of caches, with one worker, since a tokenizer serves one thread.

    Args:
        dataset: the split of the caches.
        opened: keeps opened teachers and encoded features for other runs.
    """
    opened = {} if opened is None else opened

    def live(cache: TeacherCache) -> TeacherFeatures:
        if cache.teacher_name not in opened:
            opened[cache.teacher_name] = live_teacher(cache, dataset)
        return opened[cache.teacher_name]

    with patch("advl_pipeline.training.signals.teaching.cached_teacher", live):
        yield
