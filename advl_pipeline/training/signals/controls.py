"""Controls of what a teacher knows: its features, the signal and the confidences as each control makes them.

A control keeps the statistics of features and takes away what a gain should come from. Shuffled, features are
permuted over the units, and mean nothing of them. Moved, the cells of a grid lie in the wrong places of their own
picture: what it shows stays, and where it shows it is lost. With its own tokens, a student follows nobody's pictures.
Shapes: Q units, M token rows, D teacher width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import FeatureStore
from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.distillation.pooling import with_own_tokens
from advl_pipeline.distillation.signal import TeacherSignal, TeacherWidths
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.signals.averages import TeacherGrid
from advl_pipeline.training.signals.teacher_features import (
    TOWERS,
    Array,
    FeatureView,
    Lengths,
    TeacherFeatures,
    Tower,
)


class Control:
    """No control: teachers as they are. Subclasses change what they name, and leave the rest as it is here."""

    def require(self, teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
        """Refuse a control that no loss would read, or that would be the method itself.

        Args:
            teachers: as the caches hold them.
            config: of the run.

        Raises:
            ConfigError: as said.
        """

    def features(self, teacher: TeacherFeatures) -> TeacherFeatures:
        """Return a teacher's features of one cache as the control makes them."""
        return teacher

    def widths(self, widths: Mapping[str, TeacherWidths], student: Student) -> dict[str, TeacherWidths]:
        """Return the widths of what is followed, by teacher."""
        return dict(widths)

    def signal(self, signal: TeacherSignal, student: Student, batch: StudentBatch) -> TeacherSignal:
        """Return the signal of a batch as the student follows it."""
        return signal

    def estimates(self, estimates: Mapping[str, TruthConfidence]) -> dict[str, TruthConfidence]:
        """Return the confidences of teachers that are followed, by modality."""
        return dict(estimates)

    def confidences(self, value_by_id: Mapping[str, float]) -> dict[str, float]:
        """Return the confidences of a modality, by example, that probes found of the teachers as they are."""
        return dict(value_by_id)


class PermutedFeatures(FeatureView):
    """What a control makes of features: each unit has those of another one, or its own rows in another order."""

    def __init__(
        self,
        store: FeatureStore,
        *,
        whole_of: Callable[[str], str],
        rows_of: Callable[[str], str],
        order_of: Callable[[str, int, int], npt.NDArray[np.int64]],
    ) -> None:
        """Args:
        whole_of: the unit whose global features a unit gets.
        rows_of: the unit whose token rows it gets.
        order_of: which of these, (M,), of a unit with M rows of its own; given it, M and how many there are.
        """
        super().__init__(store)
        self._whole_of, self._rows_of, self._order_of = whole_of, rows_of, order_of

    def global_features(self, ids: Sequence[str]) -> Array:
        """Return (Q, D)."""
        return self._store.global_features([self._whole_of(unit) for unit in ids])

    def token_features(self, ids: Sequence[str]) -> tuple[Array, Lengths]:
        """Return as many rows per unit as it has."""
        lengths = self._store.token_lengths(ids)
        rows, lent = self._store.token_features([self._rows_of(unit) for unit in ids])
        starts = np.concatenate([[0], np.cumsum(lent)[:-1]])
        of_units = zip(ids, starts, lengths.tolist(), lent.tolist(), strict=True)
        take = [start + self._order_of(unit, num_rows, others) for unit, start, num_rows, others in of_units]
        return rows[np.concatenate(take).astype(np.int64)], lengths

    def announce(self, ids: Sequence[str]) -> None:
        """Announce the units whose features these get."""
        self._store.announce([self._whole_of(unit) for unit in ids])


def shuffled_features(store: FeatureStore, *, seed: int, tower: Tower) -> PermutedFeatures:
    """Give every unit the features of another one, by one random cycle through the store's units.

    Token rows are taken from the other unit in turn, so that shapes and alignment stay as they are; from the next one
    of the cycle that has rows where it has none. `tower` keeps the cycles of two stores apart: the same one through
    as many pictures as texts would leave the pairs matched.
    """
    entropy = np.random.SeedSequence([seed, 0x5EED, TOWERS.index(tower)])
    ids = list(store.ids)
    cycle = [ids[index] for index in np.random.default_rng(entropy).permutation(len(ids))]
    with_rows: dict[str, str] = {}
    if store.has_tokens:
        has_rows = dict(zip(cycle, (store.token_lengths(cycle) > 0).tolist(), strict=True))
        donor = next((unit for unit in cycle if has_rows[unit]), cycle[0])
        for unit in reversed(cycle):
            with_rows[unit] = donor
            donor = unit if has_rows[unit] else donor
    return PermutedFeatures(
        store,
        whole_of=dict(zip(cycle, cycle[1:] + cycle[:1], strict=True)).__getitem__,
        rows_of=with_rows.__getitem__,
        order_of=lambda _, num_rows, others: np.arange(num_rows) % max(1, others),
    )


@dataclass(frozen=True)
class Shuffled(Control):
    """Every unit has the features, and every example the confidence, of another one."""

    seed: int

    def features(self, teacher: TeacherFeatures) -> TeacherFeatures:
        """Permute the features over units, each tower by itself."""
        image, text = teacher.image, teacher.text
        return replace(
            teacher,
            image=shuffled_features(image, seed=self.seed, tower="image")
            if isinstance(image, FeatureStore)
            else None,
            text=shuffled_features(text, seed=self.seed, tower="text") if isinstance(text, FeatureStore) else None,
        )

    def confidences(self, value_by_id: Mapping[str, float]) -> dict[str, float]:
        """Permute them over the examples."""
        ids = list(value_by_id)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return {example: value_by_id[ids[index]] for example, index in zip(ids, order, strict=True)}


@dataclass(frozen=True)
class MovedCells(Control):
    """The cells of a picture's grid in an order of each picture's own; without a seed all by half the grid."""

    name: str
    seed: int | None

    def require(self, teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
        """Refuse grids that no loss reads, and teachers without one."""
        if config.distill.vision_target == "image" or config.distill.pathway == "text":
            raise ConfigError(
                "The cells of a grid that no loss reads cannot be a control.",
                where=f"--teacher-control {self.name}",
                next_command="leave out --vision-target image and --pathway text, or use --teacher-control shuffle",
            )
        grids = [teacher.image_places for teacher in teachers if isinstance(teacher.image_places, TeacherGrid)]
        if not any(grid.rows * grid.columns > 1 for grid in grids):
            raise ConfigError(
                "No teacher has a grid of several cells, so the control would be the method itself.",
                where=f"--teacher-control {self.name}",
                why=f"the teachers are {', '.join(teacher.name for teacher in teachers)}",
                next_command="add the --cache of a vision teacher with a grid, or use --teacher-control shuffle",
            )

    def features(self, teacher: TeacherFeatures) -> TeacherFeatures:
        """Move the cells of each picture.

        Raises:
            ConfigError: the teacher sees pictures and has no grid.
        """
        if teacher.image is None:
            return teacher
        grid = teacher.image_places
        if not isinstance(grid, TeacherGrid):
            raise ConfigError(
                "This teacher's cache has no grid whose cells could be moved.",
                where=teacher.name,
                next_command="--teacher-control shuffle, or extract again with --image-tokens grid",
            )
        assert isinstance(teacher.image, FeatureStore)
        cells = np.arange(grid.rows * grid.columns).reshape(grid.rows, grid.columns)
        half = np.roll(cells, (grid.rows // 2, grid.columns // 2), axis=(0, 1)).reshape(-1)

        def order_of(unit: str, *_: int) -> npt.NDArray[np.int64]:
            if self.seed is None:
                return half
            entropy = np.random.SeedSequence([self.seed, 0xCE11, zlib.crc32(unit.encode())])
            return np.random.default_rng(entropy).permutation(cells.size)

        moved = PermutedFeatures(teacher.image, whole_of=str, rows_of=str, order_of=order_of)
        return replace(teacher, image=moved)


class OwnTokens(Control):
    """The student's own visual tokens, before they meet the text, in every vision teacher's place."""

    def require(self, teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
        """Refuse a run that distils no vision teacher."""
        is_text = config.distill.pathway == "text"
        if is_text or not any(teacher.image for teacher in teachers):
            raise ConfigError(
                "The student's own tokens stand in for a vision teacher, and none is distilled.",
                where="--teacher-control own-tokens",
                why="--pathway text" if is_text else "no cache is of a vision teacher",
                next_command="add the --cache of a vision teacher, or leave out --teacher-control",
            )

    def widths(self, widths: Mapping[str, TeacherWidths], student: Student) -> dict[str, TeacherWidths]:
        """Return the student's width for every picture's."""
        width = student.hidden_size
        return {
            name: replace(
                of_teacher,
                image_global=of_teacher.image_global and width,
                image_region=of_teacher.image_region and width,
            )
            for name, of_teacher in widths.items()
        }

    @torch.no_grad()
    def signal(self, signal: TeacherSignal, student: Student, batch: StudentBatch) -> TeacherSignal:
        """Put the tokens in the teachers' place; no gradient goes to them."""
        return with_own_tokens(signal, student.visual_tokens(batch), batch)

    def estimates(self, estimates: Mapping[str, TruthConfidence]) -> dict[str, TruthConfidence]:
        """Leave out pictures: what a vision teacher is sure of is nothing that the student's own tokens say."""
        return {name: estimate for name, estimate in estimates.items() if name == "text"}


NO_CONTROL = Control()


def control_of(config: FinetuneConfig) -> Control:
    """Return the control that `--teacher-control` asks for."""
    name, seed = config.teacher_control, config.seed
    if name in ("shuffle-cells", "shift-grid"):
        return MovedCells(name, seed if name == "shuffle-cells" else None)
    return {"none": NO_CONTROL, "shuffle": Shuffled(seed), "own-tokens": OwnTokens()}[name]
