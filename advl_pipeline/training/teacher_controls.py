"""Controls of a run: teachers whose features keep their statistics and lose what a gain should come from.

Shuffled, a teacher's features are permuted over its units, and mean nothing of them. Moved, the cells of its grid lie
in the wrong places of their own picture: what it shows stays, and where it shows it is lost.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.reader import FeatureStore
from advl_pipeline.errors import ConfigError
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.signals import Array, StandIn, TeacherFeatures
from advl_pipeline.training.vision_signals import TeacherGrid

Tower = Literal["image", "text"]
_TOWERS: tuple[Tower, ...] = get_args(Tower)


class ShuffledFeatures(StandIn):
    """Every unit gets the features of another one, by one random cycle through the store's units.

    Token rows are taken from the other unit in turn, so that shapes and alignment stay as they are; from the next one
    of the cycle that has rows where it has none. `tower` keeps the cycles of two stores apart: the same one through
    as many pictures as texts would leave the pairs matched.
    """

    def __init__(self, store: FeatureStore, *, seed: int, tower: Tower) -> None:
        super().__init__(store)
        entropy = np.random.SeedSequence([seed, 0x5EED, _TOWERS.index(tower)])
        ids = list(store.ids)
        cycle = [ids[index] for index in np.random.default_rng(entropy).permutation(len(ids))]
        self._other = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
        self._other_with_rows = self._skip_empty(cycle) if store.has_tokens else {}

    def _skip_empty(self, cycle: list[str]) -> dict[str, str]:
        has_rows = dict(zip(cycle, (self._store.token_lengths(cycle) > 0).tolist(), strict=True))
        donor = next((unit for unit in cycle if has_rows[unit]), cycle[0])
        found = {}
        for unit in reversed(cycle):
            found[unit] = donor
            donor = unit if has_rows[unit] else donor
        return found

    def global_features(self, ids: Sequence[str]) -> Array:
        """Return the other units' global features."""
        return self._store.global_features([self._other[unit] for unit in ids])

    def token_features(self, ids: Sequence[str]) -> tuple[Array, npt.NDArray[np.int32]]:
        """Return as many rows per unit as it has, taken in turn from the other unit."""
        _, lengths = self._store.token_features(ids)
        other_rows, other_lengths = self._store.token_features([self._other_with_rows[unit] for unit in ids])
        starts = np.concatenate([[0], np.cumsum(other_lengths)[:-1]])
        take = [
            start + np.arange(length) % max(1, other)
            for start, length, other in zip(starts, lengths, other_lengths, strict=True)
        ]
        return other_rows[np.concatenate(take).astype(np.int64)], lengths

    def announce(self, ids: Sequence[str]) -> None:
        """Announce the other units."""
        self._store.announce([self._other[unit] for unit in ids])


def shuffled_teacher(teacher: TeacherFeatures, *, seed: int) -> TeacherFeatures:
    """Return a cached teacher with its features permuted over units, each tower by itself."""
    image, text = teacher.image, teacher.text
    return replace(
        teacher,
        image=ShuffledFeatures(image, seed=seed, tower="image") if isinstance(image, FeatureStore) else None,
        text=ShuffledFeatures(text, seed=seed, tower="text") if isinstance(text, FeatureStore) else None,
    )


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


def controlled_teacher(teacher: TeacherFeatures, config: FinetuneConfig) -> TeacherFeatures:
    """Return a cached teacher as the control makes it.

    Raises:
        ConfigError: cells are to be moved, of a teacher that sees pictures and has no grid, or that no loss reads.
    """
    if config.teacher_control in ("none", "own-tokens"):
        return teacher
    if config.teacher_control == "shuffle":
        return shuffled_teacher(teacher, seed=config.seed)
    if config.distill.vision_target == "image" or config.distill.pathway == "text":
        raise ConfigError(
            "The cells of a grid that no loss reads cannot be a control.",
            where=f"--teacher-control {config.teacher_control}",
            next_command="leave out --vision-target image and --pathway text, or use --teacher-control shuffle",
        )
    if teacher.image is not None and not isinstance(teacher.image_places, TeacherGrid):
        raise ConfigError(
            "This teacher's cache has no grid whose cells could be moved.",
            where=teacher.name,
            next_command="--teacher-control shuffle, or extract again with --image-tokens grid",
        )
    if config.teacher_control == "shuffle-cells":
        return with_shuffled_cells(teacher, seed=config.seed)
    return with_shifted_grid(teacher)


def require_moved_cells(teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
    """Refuse a control that moves no cell, which would be the method itself.

    Raises:
        ConfigError: as said.
    """
    if config.teacher_control not in ("shuffle-cells", "shift-grid"):
        return
    moved = [one for one in teachers if isinstance(one.image, MovedCells)]
    grids = [one.image_places for one in moved if isinstance(one.image_places, TeacherGrid)]
    if not any(grid.rows * grid.columns > 1 for grid in grids):
        raise ConfigError(
            "No teacher has a grid of several cells, so the control would be the method itself.",
            where=f"--teacher-control {config.teacher_control}",
            why=f"the teachers are {', '.join(one.name for one in teachers)}",
            next_command="add the --cache of a vision teacher with a grid, or use --teacher-control shuffle",
        )


def require_vision_teacher(teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
    """Refuse a student that would teach itself where no vision teacher says of which places.

    Raises:
        ConfigError: as said.
    """
    if config.teacher_control != "own-tokens":
        return
    if config.distill.pathway == "text" or not any(one.image for one in teachers):
        raise ConfigError(
            "The student's own tokens stand in for a vision teacher, and none is distilled.",
            where="--teacher-control own-tokens",
            why="--pathway text" if config.distill.pathway == "text" else "no cache is of a vision teacher",
            next_command="add the --cache of a vision teacher, or leave out --teacher-control",
        )
