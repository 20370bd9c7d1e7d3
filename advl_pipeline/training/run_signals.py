"""What a run learns from beside labels: teachers as they are or as a control makes them, confidences, known words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.trust import require_trustworthy
from advl_pipeline.confidence.estimators import load_or_estimate_confidence
from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.confidence.separation import Separation, separation
from advl_pipeline.datasets.words import KnownWords, fit_word_prior
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.known_words import known_words, read_known_words
from advl_pipeline.students.options import StudentOptions
from advl_pipeline.training.bridge import bridge_confidence
from advl_pipeline.training.compatibility import check_caches, check_part, check_selection
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.inputs import Inputs, cache_of_split
from advl_pipeline.training.joined_teacher import joined_teacher
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.signals import SignalSource, TeacherFeatures, cached_teacher
from advl_pipeline.training.student_confidence import StudentConfidence
from advl_pipeline.training.teacher_controls import (
    MovedCells,
    shuffled_teacher,
    with_shifted_grid,
    with_shuffled_cells,
)
from advl_pipeline.training.vision_signals import TeacherGrid


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What the run learns from, and the teachers as they are, which a control's are not."""

    source: SignalSource
    judge: SignalSource


def open_signals(
    run: Run,
    caches: Sequence[TeacherCache],
    inputs: Inputs,
) -> Signals | None:
    """Return the teachers' signals, checked against the inputs; None where none is needed.

    Raises:
        IdentityMismatch: a cache of another dataset, split or setting. CorruptCache: one that cannot be trusted.
        ConfigError: teachers or options that contradict each other.
    """
    config, method = run.config, run.method
    anchors = method.num_adapt_steps > 0 and method.settings.anchor_weight > 0
    if not method.uses_teachers and not anchors:
        return None
    by_split = cache_of_split(caches, inputs.splits)
    for split, of_split in zip(inputs.splits, by_split, strict=True):
        check_caches(of_split, split, data_root=config.data_root, on_error=config.on_error)
        check_selection(of_split, method.settings)
        if split is inputs.dataset:
            check_part(of_split, split, sorted({*inputs.labelled, *inputs.seen}), config)
        else:
            check_part(of_split, split, range(len(split)), config)
        for cache in of_split:
            require_trustworthy(cache, hash_all=config.verify_caches)
    cached = [[cached_teacher(cache) for cache in of_split] for of_split in by_split]
    read = [[_controlled(teacher, config) for teacher in of_split] for of_split in cached]
    _require_moved(read[0], config)
    teachers = [
        joined_teacher(of_teacher, as_read)
        for of_teacher, as_read in zip(zip(*cached, strict=True), zip(*read, strict=True), strict=True)
    ]
    texts = (
        candidate.text
        for index in sorted({*inputs.labelled, *inputs.adapt})
        for candidate in inputs.adapt_dataset[index].candidates
    )
    source = SignalSource(
        teachers,
        prior=fit_word_prior(texts),
        known=KnownWords(counts=_known_words(config)),
        target_norm=config.target_norm,
    )
    judges = [joined_teacher(of_teacher, of_teacher) for of_teacher in zip(*cached, strict=True)]
    return Signals(source=source, judge=source.with_teachers(judges))


def _controlled(teacher: TeacherFeatures, config: FinetuneConfig) -> TeacherFeatures:
    """Return a cached teacher as the control makes it.

    Raises:
        ConfigError: cells are to be moved, of a teacher that sees pictures and has no grid, or that no loss reads.
    """
    if config.teacher_control == "none":
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


def _require_moved(teachers: Sequence[TeacherFeatures], config: FinetuneConfig) -> None:
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


def _known_words(config: StudentOptions) -> Mapping[str, int] | None:
    """Return the words that pretraining taught, with their counts; None where it left no record."""
    if config.known_words is not None:
        return read_known_words(config.known_words)
    return None if config.init is None else known_words(config.init)


def find_confidences(
    run: Run,
    caches: Sequence[TeacherCache],
    inputs: Inputs,
    signals: Signals | None,
    model: FinetuneModel,
    *,
    device: torch.device,
) -> list[CheckedConfidence]:
    """Give the signals the confidences that weights follow; return what was found about each.

    Args:
        model: as it starts, with its landmarks.

    Raises:
        ConfigError: an estimator that these teachers or tasks do not allow.
    """
    config = run.config
    if signals is None or run.method.settings.weighting == "uniform" or config.confidence == "none":
        return []
    ids = [inputs.dataset.example_ids[index] for index in inputs.labelled]
    if config.confidence == "bridge":
        bridge = bridge_confidence(model, inputs.dataset, inputs.labelled, signals.source, device=device)
        estimates: Mapping[str, TruthConfidence] = {"text": bridge}
    else:
        estimates = load_or_estimate_confidence(
            caches=cache_of_split(caches, inputs.splits)[0],
            dataset=inputs.dataset,
            example_ids=ids,
            estimator=config.confidence,
            folds=config.confidence_folds,
            seed=config.seed,
        )
    pictures = [inputs.dataset[index].cluster for index in inputs.labelled]
    checked = check_confidences(estimates, pictures, config.confidence_check)
    followed = {
        one.modality: dict(zip(ids, map(float, estimates[one.modality].probability_N), strict=True))
        for one in checked
        if one.is_used
    }
    # Probes read the teachers as they are; the bridge reads them as the control makes them.
    if config.teacher_control == "shuffle" and config.confidence != "bridge":
        followed = {name: _permute(values, config.seed) for name, values in followed.items()}
    signals.source.confidence = followed
    return checked


def remember_confidences(
    run: Run,
    checked: Sequence[CheckedConfidence],
    inputs: Inputs,
) -> StudentConfidence | None:
    """Return where the student's confidences are kept, or None where weights need none but the current one."""
    needs_it = run.method.settings.weighting == "ratio" and any(one.is_used for one in checked)
    if not needs_it or run.config.student_confidence == "current":
        return None
    ids = inputs.dataset.example_ids
    return StudentConfidence([ids[position] for position in inputs.labelled])


def _permute(values: dict[str, float], seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(values), generator=generator).tolist()
    numbers = list(values.values())
    return {name: numbers[index] for name, index in zip(values, order, strict=True)}


ConfidenceCheck = Literal["auc", "none"]

_WEIGHTED = {"vision": "the vision pathway's weights", "text": "the text pathway's weights", "joint": "all weights"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedConfidence:
    """The confidences of one modality: `separation` of right from wrong, and whether weights follow them."""

    modality: str
    separation: Separation
    is_used: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        return {**asdict(self.separation), "weights": "by confidence" if self.is_used else "uniform"}

    def line(self) -> str:
        """Return one line for people."""
        figures = f"confidence {self.modality}: {self.separation}"
        if self.is_used:
            return figures
        return (
            f"{figures}; NOT ABOVE CHANCE, so {_WEIGHTED[self.modality]} are uniform "
            "(--confidence-check none follows it)"
        )


def check_confidences(
    estimates: Mapping[str, TruthConfidence], groups: Sequence[str], check: ConfidenceCheck
) -> list[CheckedConfidence]:
    """Tell for each modality whether its weights follow the confidence.

    Args:
        estimates: by modality, on the labelled items.
        check: `auc` refuses a confidence whose 95 % interval does not lie above chance; `none` refuses nothing.
    """
    checked = []
    for modality, estimate in estimates.items():
        found = separation(estimate.outranked_N, groups)
        is_used = check == "none" or found.is_above_chance
        checked.append(CheckedConfidence(modality=modality, separation=found, is_used=is_used))
    return checked
