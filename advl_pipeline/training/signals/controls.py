"""Controls of the teacher's knowledge: each modifies the features, the signal and the confidences.

A control keeps the statistics of features and removes the information that a gain should come from. `Shuffled`
permutes features over the units, so that they say nothing of their unit. `ShuffledPatches` permutes the patches
of a grid within their own picture, which keeps the content and loses its location. `OwnTokens` replaces vision
teachers by the student's own tokens.
Shapes: B examples, N sequences, R visual tokens, H student width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.base.errors import ConfigError, ineffective
from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.distillation.pooling import pool_to_regions
from advl_pipeline.distillation.signal import Features, TeacherSignal, Widths
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.signals.averages import TeacherGrid
from advl_pipeline.training.signals.teacher_features import TeacherFeatures, UnitFeatures


class Control:
    """No control: unmodified teachers. Subclasses override only what they change."""

    def require(self, teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
        """Refuse a control that has no effect on the loss, or that equals the method itself.

        Args:
            teachers: as the caches store them.
            config: of the run.

        Raises:
            ConfigError: the control has nothing to change.
        """

    def features(self, teacher: TeacherFeatures) -> TeacherFeatures:
        """Return a teacher's features, modified by the control."""
        return teacher

    def widths(self, widths: Mapping[str, Widths], student: Student) -> dict[str, Widths]:
        """Return the widths of the distilled features, by teacher."""
        return dict(widths)

    def signal(self, signal: TeacherSignal, student: Student, batch: StudentBatch) -> TeacherSignal:
        """Return the signal of a batch that the student is to follow."""
        return signal

    def estimates(self, estimates: Mapping[str, TruthConfidence]) -> dict[str, TruthConfidence]:
        """Return the estimators of the teachers' confidence that are used, by modality."""
        return dict(estimates)

    def confidences(self, value_by_id: Mapping[str, float]) -> dict[str, float]:
        """Return the confidences of a modality, by example, given those from probes of the original teachers."""
        return dict(value_by_id)


def shuffled_features(features: UnitFeatures, *, seed: int, tower: int) -> UnitFeatures:
    """Give every unit the features of another unit of its cache, by one random cycle through the units.

    Token rows come from the next unit of the cycle that has rows, cyclically where their numbers differ, so that
    shapes and alignment do not change. `tower` gives two stores different cycles: with the same cycle through equal
    numbers of pictures and texts, the pairs would still match.
    """
    whole: dict[str, str] = {}
    with_rows: dict[str, str] = {}
    # If several caches contain a unit, its features are read from the first.
    for store in reversed(features.stores):
        ids = list(store.ids)
        entropy = np.random.SeedSequence([seed, 0x5EED, tower])
        cycle = [ids[index] for index in np.random.default_rng(entropy).permutation(len(ids))]
        whole |= zip(cycle, cycle[1:] + cycle[:1], strict=True)
        if store.has_tokens:
            has_rows = dict(zip(cycle, (store.token_lengths(cycle) > 0).tolist(), strict=True))
            donor = next((unit for unit in cycle if has_rows[unit]), cycle[0])
            for unit in reversed(cycle):
                with_rows[unit] = donor
                donor = unit if has_rows[unit] else donor
    return UnitFeatures(
        *features.stores,
        whole_of=whole.__getitem__,
        rows_of=with_rows.__getitem__,
        order_of=lambda _, num_rows, others: np.arange(num_rows) % max(1, others),
    )


@dataclass(frozen=True)
class Shuffled(Control):
    """Every unit gets the features, and every example the confidence, of another one."""

    seed: int

    def features(self, teacher: TeacherFeatures) -> TeacherFeatures:
        """Permute the features over units, separately for each tower."""
        image, text = (
            features and shuffled_features(features, seed=self.seed, tower=tower)
            for tower, features in enumerate((teacher.image, teacher.text))
        )
        return replace(teacher, image=image, text=text)

    def confidences(self, value_by_id: Mapping[str, float]) -> dict[str, float]:
        """Permute the confidences over the examples."""
        ids = list(value_by_id)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return {example: value_by_id[ids[index]] for example, index in zip(ids, order, strict=True)}


@dataclass(frozen=True)
class ShuffledPatches(Control):
    """The patches of each picture's grid in an order of its own."""

    seed: int

    def require(self, teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
        """Refuse grids that no loss reads, and teachers without a grid."""
        if config.distill.vision_target == "image" or config.distill.pathway == "text":
            raise ineffective("--teacher-control", why="no loss reads the patches of a grid")
        grids = [teacher.image_places for teacher in teachers if isinstance(teacher.image_places, TeacherGrid)]
        if not any(grid.rows * grid.columns > 1 for grid in grids):
            raise ineffective("--teacher-control", why="no teacher has a grid of several patches")

    def features(self, teacher: TeacherFeatures) -> TeacherFeatures:
        """Permute the patches of each picture.

        Raises:
            ConfigError: a vision teacher has no grid.
        """
        if teacher.image is None:
            return teacher
        grid = teacher.image_places
        if not isinstance(grid, TeacherGrid):
            raise ConfigError(
                "The control permutes the patches of a grid, and this teacher's cache has no grid.",
                where=teacher.name,
                next_command="--teacher-control shuffle, or extract again with --image-tokens grid",
            )
        num_patches = grid.rows * grid.columns

        def order_of(unit: str, *_: int) -> npt.NDArray[np.int64]:
            entropy = np.random.SeedSequence([self.seed, 0xCE11, zlib.crc32(unit.encode())])
            return np.random.default_rng(entropy).permutation(num_patches)

        return replace(teacher, image=UnitFeatures(*teacher.image.stores, order_of=order_of))


class OwnTokens(Control):
    """The student's own visual tokens, before they meet the text, in place of every vision teacher.

    Later layers of a student gain from predicting its own early visual tokens, which contain no new knowledge
    (PRe, arXiv 2603.20808: on general sets as much as from DINOv2). The value of a vision teacher is its gain over
    this control.
    """

    def require(self, teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
        """Refuse a run that distils no vision teacher."""
        is_text = config.distill.pathway == "text"
        if is_text or not any(teacher.image for teacher in teachers):
            raise ineffective(
                "--teacher-control",
                why="it replaces a vision teacher, and none is distilled: "
                + ("--pathway text" if is_text else "no cache is of a vision teacher"),
            )

    def widths(self, widths: Mapping[str, Widths], student: Student) -> dict[str, Widths]:
        """Return the student's width for every vision teacher."""
        return {
            name: {
                kind: student.hidden_size if kind in ("image", "region") else width
                for kind, width in of_teacher.items()
            }
            for name, of_teacher in widths.items()
        }

    @torch.no_grad()
    def signal(self, signal: TeacherSignal, student: Student, batch: StudentBatch) -> TeacherSignal:
        """Replace the teachers' features by the tokens at the same places, without gradient."""
        own_BRH = student.visual_tokens(batch)[batch.first_B].float()
        mask_BR = batch.visual_mask_NR[batch.first_B]
        share_BR = mask_BR / mask_BR.sum(1, keepdim=True).clamp(min=1)
        picture = Features(values_MD=torch.einsum("br,brh->bh", share_BR, own_BRH))
        vision = {}
        for name, part in signal.vision.items():
            regions = part.regions and Features(values_MD=pool_to_regions(own_BRH, part.shares_BSR))
            vision[name] = replace(part, picture=picture, regions=regions)
        return replace(signal, vision=vision)

    def estimates(self, estimates: Mapping[str, TruthConfidence]) -> dict[str, TruthConfidence]:
        """Leave out pictures: a vision teacher's confidence does not describe the student's own tokens."""
        return {name: estimate for name, estimate in estimates.items() if name == "text"}


NO_CONTROL = Control()


def control_of(config: FinetuneConfig) -> Control:
    """Return the control that `--teacher-control` asks for."""
    controls = {
        "none": NO_CONTROL,
        "shuffle": Shuffled(config.seed),
        "shuffle-cells": ShuffledPatches(config.seed),
        "own-tokens": OwnTokens(),
    }
    return controls[config.teacher_control]
