"""Controls: a teacher's grid whose cells lie in the wrong places of their own picture.

What a picture shows stays, and so do the statistics; where it shows it is lost. A gain that such a teacher also gives
does not come from places.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.reader import FeatureStore
from advl_pipeline.training.signals import Array, StandIn, TeacherFeatures
from advl_pipeline.training.vision_signals import TeacherGrid


class MovedCells(StandIn):
    """Each cell gets the features of another one of the same picture; `order_of` gives, by unit, which (M,) int64."""

    def __init__(self, store: FeatureStore, order_of: Callable[[str], npt.NDArray[np.int64]]) -> None:
        super().__init__(store)
        self._order_of = order_of

    def token_features(self, ids: Sequence[str]) -> tuple[Array, npt.NDArray[np.int32]]:
        """Return the pictures' own cells, in another order."""
        rows, lengths = self._store.token_features(ids)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        take = [start + self._order_of(unit) for unit, start in zip(ids, starts, strict=True)]
        return rows[np.concatenate(take)], lengths


def with_shuffled_cells(teacher: TeacherFeatures, *, seed: int) -> TeacherFeatures:
    """Return a cached teacher whose cells are permuted inside each picture, in an order of the picture's own."""

    def of_grid(grid: TeacherGrid) -> Callable[[str], npt.NDArray[np.int64]]:
        def order_of(unit: str) -> npt.NDArray[np.int64]:
            entropy = np.random.SeedSequence([seed, 0xCE11, zlib.crc32(unit.encode())])
            return np.random.default_rng(entropy).permutation(grid.rows * grid.columns)

        return order_of

    return _moved(teacher, of_grid)


def with_shifted_grid(teacher: TeacherFeatures) -> TeacherFeatures:
    """Return a cached teacher whose grid is shifted by half its rows and columns, around the edges of the picture."""

    def of_grid(grid: TeacherGrid) -> Callable[[str], npt.NDArray[np.int64]]:
        cells = np.arange(grid.rows * grid.columns).reshape(grid.rows, grid.columns)
        order = np.roll(cells, (grid.rows // 2, grid.columns // 2), axis=(0, 1)).reshape(-1)
        return lambda unit: order

    return _moved(teacher, of_grid)


def _moved(
    teacher: TeacherFeatures, of_grid: Callable[[TeacherGrid], Callable[[str], npt.NDArray[np.int64]]]
) -> TeacherFeatures:
    if not isinstance(teacher.image_places, TeacherGrid) or not isinstance(teacher.image, FeatureStore):
        return teacher
    return replace(teacher, image=MovedCells(teacher.image, of_grid(teacher.image_places)))
