"""Build the trained modules of a run: student, heads, and the model that combines them with the projections.

The student's settings come from the run's options (kind of regions, tokenizer) and from its recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from advl_pipeline.base.compute import drawing
from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.base.errors import ConfigError, ineffective
from advl_pipeline.base.toml import parse_toml
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset, head_name
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.students.abilities import (
    ReadsChoices,
    ReadsTexts,
    StartsFromTowers,
    TokenisesTexts,
    require_perturbable,
)
from advl_pipeline.students.interface import LabelledChoices, Student
from advl_pipeline.students.memory import (
    add_lora,
    enable_gradient_checkpointing,
    hold_frozen_in_bf16,
    lora_settings,
)
from advl_pipeline.students.options import PIXELS, BaseDtype
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.teachers.registry import open_teacher
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.heads import HeadOrigin, fill_heads
from advl_pipeline.training.inputs import Inputs
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.recipes import ChosenRecipe
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.signals.confidences import StudentConfidence
from advl_pipeline.training.signals.teaching import Teaching
from advl_pipeline.training.step import FinetuneModel
from advl_pipeline.training.targets import require_fitting_loss

MOST_TEXTS: Final = 10_000
MOST_FITTED: Final = 2500
QUESTIONS_AT_ONCE: Final = 64
"""Labelled questions that heads read before the finetune stage (`ReadsChoices`), and those in a batch."""

TEXTS_AT_ONCE: Final = 256
"""Number of texts per batch when words are counted (`ReadsTexts`)."""


def build_finetune_student(run: Run) -> Student:
    """Build the student; the same seed gives the same student for every method."""
    config = run.config
    with drawing(config.seed):
        options = student_options(config_to_dict(config))
        overrides = {**recipe_options(run.chosen, config.init), **options}
        student = build_student(config.student, weights=config.init, overrides=overrides)
        if config.init is None:
            fill_towers(student)
        if run.settings.adversarial is not None:
            require_perturbable(student)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(student)
        if (updates := lora_settings(student, config)) is not None:
            add_lora(student, updates)
        if base_dtype(student, config) == "bf16":
            hold_frozen_in_bf16(student)
        return student


def base_dtype(student: Student, config: FinetuneConfig) -> BaseDtype:
    """Return the dtype of the student's frozen weights in a run.

    A student that answers in words computes in the dtype of its weights, like transformers' own model. The layers of
    other students expect fp32.

    Raises:
        ConfigError: bf16 is requested but nothing is frozen, or the student does not support bf16.
    """
    is_frozen = lora_settings(student, config) is not None
    can_hold_bf16 = is_frozen and student.lora is not None
    if config.base_dtype == "bf16" and not can_hold_bf16:
        raise ineffective(
            "--base-dtype",
            why=(f"{student.name} does not answer in words" if is_frozen else "the run trains all weights")
            + "; --mixed-precision bf16 computes in it",
        )
    if config.base_dtype is not None:
        return config.base_dtype
    computes_bf16 = config.mixed_precision == "bf16" and torch.device(config.device).type != "cpu"
    return "bf16" if can_hold_bf16 and computes_bf16 else "fp32"


def fill_towers(student: Student) -> dict[str, Any]:
    """Copy the weights of the teachers that a student starts from; return the identities of these weights, by name.

    Raises:
        WeightsUnavailable: they are not available.
    """
    if not isinstance(student, StartsFromTowers):
        return {}
    opened: list[Any] = [open_teacher(name) for name in student.towers]
    backbones = [(teacher.image or teacher.text).backbone for teacher in opened]
    student.take_towers([backbone.network for backbone in backbones])
    return {name: backbone.describe() for name, backbone in zip(student.towers, backbones, strict=True)}


def build_finetune_heads(
    run: Run, student: Student, inputs: Inputs
) -> tuple[dict[str, nn.Module], dict[str, HeadOrigin]]:
    """Build a student's heads, and return the origin of each; the same seed gives every method the same heads."""
    heads: dict[str, nn.Module] = {}
    with drawing(run.config.seed + 1):
        for task in inputs.dataset.tasks:
            # Tasks that share a head get only one.
            if (name := head_name(task)) not in heads:
                num_classes = 1 if task in MULTIPLE_CHOICE_TASKS else len(inputs.dataset.label_names(task))
                heads[name] = student.build_head(name, num_classes)
    # Heads with statistics of the texts read those of the split, evenly spaced if there are many; no label.
    seen = inputs.seen[:: -(-len(inputs.seen) // MOST_TEXTS)]
    for head in heads.values():
        if isinstance(head, ReadsTexts):
            if not isinstance(student, TokenisesTexts):
                raise ConfigError(f"{student.name} does not give its texts without their pictures.")
            head.read_texts(
                student.text_tokens([inputs.dataset[position] for position in seen[first : first + TEXTS_AT_ONCE]])
                for first in range(0, len(seen), TEXTS_AT_ONCE)
            )
    for task in inputs.dataset.tasks:
        require_fitting_loss(run.settings.task_loss, task, heads[head_name(task)])
    with drawing():
        return heads, fill_heads(heads, student, inputs.dataset, run.config)


def fit_heads(start: StudentAtStart, dataset: Dataset, labelled: Sequence[int]) -> None:
    """Show labelled questions to heads that labels fit before the finetune stage; at most `MOST_FITTED`."""
    readers = {name: head for name, head in start.heads.items() if isinstance(head, ReadsChoices)}
    fitted = labelled[:: -(-len(labelled) // MOST_FITTED)] if readers else ()
    task_of = {position: dataset.candidates_of(position)[0] for position in fitted}
    choices = [position for position, task in task_of.items() if task in MULTIPLE_CHOICE_TASKS]
    for name, head in readers.items():
        if questions := [position for position in choices if head_name(task_of[position]) == name]:
            head.read_choices(_labelled_choices(start, dataset, questions))


@torch.no_grad()
def _labelled_choices(start: StudentAtStart, dataset: Dataset, positions: Sequence[int]) -> Iterator[LabelledChoices]:
    """Yield questions as the student reads them without dropout."""
    for _, examples, batch in start.looked_at(dataset, positions, at_once=QUESTIONS_AT_ONCE, labelled_ids=None):
        with start.evaluating():
            output = start.student.encode_pooled(batch.student, mask_visual=start.hide_picture)
        assert batch.targets.label_B is not None
        yield LabelledChoices(output=output, examples=examples, label_B=batch.targets.label_B)


def build_finetune_model(run: Run, start: StudentAtStart, teaching: Teaching, inputs: Inputs) -> FinetuneModel:
    """Build the trained model from the student, its heads and the training signals besides labels.

    The present student becomes the reference of the adapt stage, which anchors known words.
    """
    settings, student = run.method.settings, start.student
    widths = start.control.widths(teaching.source.widths(), student) if teaching.source else {}
    with drawing(run.config.seed + 2):
        distiller = Distiller(
            settings,
            widths,
            hidden_size=student.hidden_size,
            pooled_size=student.pooled_size,
            vision_targets={choice.teacher: choice.target for choice in teaching.vision},
            landmarks=teaching.landmarks.words,
            region_landmarks=teaching.landmarks.regions,
        )
    anchors = run.method.num_adapt_steps > 0 and settings.anchors
    weighs = settings.weighting == "ratio" and bool(teaching.followed)
    labelled_ids = [inputs.dataset.example_ids[position] for position in inputs.labelled]
    return FinetuneModel(
        start,
        distiller,
        task_loss=run.settings.task_loss,
        reference=copy.deepcopy(student).eval().requires_grad_(False) if anchors else None,
        answers=teaching.answers.shares if teaching.answers else None,
        remembered=StudentConfidence(labelled_ids) if weighs else None,
    )


def student_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the student settings from a run's options.

    Args:
        config: plain configuration of the run (`config_to_dict`, or from its folder).

    Raises:
        ConfigError: a setting is not KEY=VALUE.
    """
    settings: dict[str, Any] = {}
    for text in config.get("student_option") or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("--student-option must be KEY=VALUE.", why=f"got {text!r}")
        name = key.replace("-", "_")
        try:
            settings[name] = parse_toml(f"value = {value}")["value"]
        except ValueError:
            settings[name] = value
    for key in ("tokenizer", "align_layer"):
        if config.get(key):
            settings[key] = config[key]
    if config.get("regions"):
        settings["regions"] = "pixels" if list(config["regions"]) == [str(PIXELS)] else "detector"
    return settings


def recipe_options(chosen: ChosenRecipe, init: Path | None) -> dict[str, Any]:
    """Return the architecture settings of a recipe.

    A recipe of another size has none that apply, and a saved student has its own except for dropout.
    """
    recipe = chosen.recipe
    if recipe is None or not chosen.is_own_size:
        return {}
    keys = ["dropout"]
    if init is None or not (init / DESCRIPTION_FILE).is_file():
        keys.append("image_size")
        # With token batches, the text length selects training examples instead (`TrainingSettings`).
        if recipe.batch_unit == "examples":
            keys.append("max_text_length")
    return {key: getattr(recipe, key) for key in keys if key in recipe.sources}
