"""Scores of a finished run on examples, and its answer to one question: only the student and its head, no teacher.

To measure whether a student uses the picture, the same items are scored with other pictures of the test set, with
blank ones (`StudentBatch.blanked`), or by the text only (`encode(..., mask_visual=True)`).
Shapes: B examples, C candidates, K classes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from advl_pipeline.base.atomic import write_bytes
from advl_pipeline.base.compute import (
    AUTO,
    ComputeConfig,
    MixedPrecision,
    allow_tf32,
    drawing,
    num_threads,
    open_device,
    precision,
    resolved,
)
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable, advise, leave_out
from advl_pipeline.base.prefetch import Prefetcher, in_order
from advl_pipeline.datasets.pictures import as_file, picture_unit
from advl_pipeline.datasets.records import (
    MULTIPLE_CHOICE_TASKS,
    Candidate,
    Example,
    ImageUnit,
    Task,
    compose,
    head_name,
)
from advl_pipeline.evaluation.items import first_maximum
from advl_pipeline.evaluation.prepare import require_finished, training_command
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json
from advl_pipeline.stored_inputs.region_caches import open_region_caches, regions_of_run
from advl_pipeline.stored_inputs.regions import use_region_caches
from advl_pipeline.students.abilities import Generates, HasInputFiles, HasTextLimit
from advl_pipeline.students.heads import described_heads, load_heads, shape_logits
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.students.memory import hold_frozen_in_bf16
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import read_description

Condition = Literal["shown", "swapped", "blanked", "removed"]
"""The true picture, another one, a blank one, or none: the student with only its text."""


NO_OTHERS: Mapping[str, ImageUnit] = MappingProxyType({})

ON_ONE_THREAD = ComputeConfig(device="cpu", mixed_precision="no", num_workers=1)


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The student of a run, which truncates texts that are too long, with its heads and the class names of each.

    `trained_on` is the configuration that the run was created with.
    """

    trained_on: Mapping[str, Any]
    student: Student
    heads: nn.ModuleDict
    label_names: dict[str, tuple[str, ...]]
    device: torch.device
    mixed_precision: MixedPrecision = "no"
    num_workers: int = 1
    """Threads that decode and collate; scores do not depend on it."""

    @property
    def hides_picture(self) -> bool:
        """Whether the run trained a text-only student, which gets no pictures here either."""
        return bool(self.trained_on.get("hide_picture", False))

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Return the names of the classes or answers of the run; None for a run that only chooses."""
        return next((names for names in self.label_names.values() if names), None)

    @torch.inference_mode()
    def scores(
        self,
        examples: Iterable[Example],
        *,
        batch_size: int,
        conditions: Sequence[Condition] = ("shown",),
        others: Mapping[str, ImageUnit] = NO_OTHERS,
    ) -> Iterator[tuple[npt.NDArray[np.float32], ...]]:
        """Yield, per example and condition, one row of scores: (C,) candidate logits or (K,) class logits.

        A batch contains one task: consecutive examples of one task are cut into batches in the order given. Each
        example is read once for all conditions.

        Args:
            others: picture id -> the picture shown instead in the condition "swapped"; no other condition needs it.
        """
        with Prefetcher(lambda: self._batches(examples, batch_size, others)) as batches:
            for task, is_choice, batch, swapped in batches:
                shown = {"swapped": swapped} if swapped is not None else {}
                shown = {condition: seen.to(self.device) for condition, seen in ({"shown": batch} | shown).items()}
                with self.student.sharing():
                    pairs = [(each, shown.get(each, shown["shown"])) for each in conditions]
                    rows = [self._logits(seen, task, is_choice, condition) for condition, seen in pairs]
                yield from zip(*rows, strict=True)

    def require_generates(self, option: str) -> None:
        """Refuse an option whose answers this run cannot generate.

        Args:
            option: as it is typed, such as "--as letters".

        Raises:
            ConfigError: the student generates no text, or the run hides pictures.
        """
        without = leave_out(option.partition(" ")[0])
        if self.hides_picture:
            raise ConfigError(
                f"{option} needs a student that sees pictures, and this run hid them.",
                where=option,
                next_command=without,
            )
        if not isinstance(self.student, Generates):
            raise ConfigError(
                f"{option} needs a student that generates text, and {self.student.name} does not.",
                where=option,
                next_command=without,
            )

    def generated(self, examples: Iterable[Example], *, batch_size: int) -> Iterator[str]:
        """Yield the answer that the student generates for each example; `require_generates` says whether it can."""
        student = self.student
        assert isinstance(student, Generates)
        parts = _same_task_batches(examples, batch_size)
        with Prefetcher(lambda: in_order(student.collate, parts, num_workers=self.num_workers)) as batches:
            for batch in batches:
                with precision(self.device, self.mixed_precision):
                    yield from student.generate(batch.to(self.device))

    def _logits(
        self, batch: StudentBatch, task: str, is_choice: bool, condition: Condition
    ) -> npt.NDArray[np.float32]:
        with precision(self.device, self.mixed_precision):
            output = self.student.encode_pooled(
                batch.blanked() if condition == "blanked" else batch,
                mask_visual=self.hides_picture or condition == "removed",
            )
            logits = shape_logits(output.class_logits(self.heads[head_name(task)]), batch.num_candidates, is_choice)
        rows: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return rows

    def _batches(
        self, examples: Iterable[Example], batch_size: int, swaps: Mapping[str, ImageUnit]
    ) -> Iterator[tuple[str, bool, StudentBatch, StudentBatch | None]]:
        def collate(part: Sequence[Example]) -> tuple[str, bool, StudentBatch, StudentBatch | None]:
            task = part[0].task
            moved = [with_picture(example, swaps[example.image.unit_id]) for example in part] if swaps else []
            swapped = self._collate(moved) if moved else None
            return task, task in MULTIPLE_CHOICE_TASKS, self._collate(part), swapped

        return in_order(collate, _same_task_batches(examples, batch_size), num_workers=self.num_workers)

    def _collate(self, examples: Sequence[Example]) -> StudentBatch:
        batch: StudentBatch = self.student.collate(examples)
        if not isinstance(self.student, Generates):
            return batch
        task = examples[0].task
        answered: StudentBatch = self.student.with_answers(batch, task, self.label_names[head_name(task)])
        return answered

    def count_cut(self, examples: Sequence[Example]) -> int:
        """Count the texts that the student truncates."""
        return self.student.count_cut(examples) if isinstance(self.student, HasTextLimit) else 0


def load_finished(
    folder: Path,
    compute: ComputeConfig = ON_ONE_THREAD,
    *,
    trained_on: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> FinishedRun:
    """Load a run finished by `advl finetune`.

    Args:
        compute: as returned by `resolved`.
        trained_on: as `require_finished` returns it; None to read it.
        overrides: settings of the student that differ from training, such as the region features of another split.

    Raises:
        ConfigError: the folder contains no run. WeightsUnavailable: the run is not finished, or its weights are
            missing or damaged. IdentityMismatch: its files are not those that it was finished with.
    """
    trained_on = trained_on or require_finished(folder)
    try:
        return _load(folder, trained_on, compute, overrides)
    except (IdentityMismatch, WeightsUnavailable) as error:
        if error.where.startswith(str(folder)):
            error.next_command = advise(
                [*training_command(folder, trained_on), "--no-resume"],
                note="or copy the run again from where it was made",
                again=(),
            )
        raise


def _load(
    folder: Path, trained_on: Mapping[str, Any], compute: ComputeConfig, overrides: Mapping[str, Any] | None
) -> FinishedRun:
    student = build_student(read_description(folder)["student"], weights=folder, overrides=overrides)
    if compute.mixed_precision == "bf16" and read_json(folder / names.ENVIRONMENT).get("base_dtype") == "bf16":
        # As in training, so that it fits on the same device.
        hold_frozen_in_bf16(student.requires_grad_(False))
    if isinstance(student, HasInputFiles):
        # Loads now, once, what each collating thread would otherwise load first.
        student.require_inputs()
    if isinstance(student, HasTextLimit):
        student.cut_texts()
    with drawing():
        heads, label_names = load_heads(folder, student)
    target = open_device(compute.device)
    allow_tf32(target)
    return FinishedRun(
        trained_on=trained_on,
        student=student.eval().to(target),
        heads=heads.eval().to(target),
        label_names=label_names,
        device=target,
        mixed_precision=compute.mixed_precision,
        num_workers=num_threads(compute.num_workers),
    )


def _same_task_batches(examples: Iterable[Example], batch_size: int) -> Iterator[Sequence[Example]]:
    remaining = iter(examples)
    while chunk := list(islice(remaining, batch_size)):
        for _, part in groupby(chunk, key=lambda example: example.task):
            yield list(part)


def swapped_pictures(images: Sequence[ImageUnit]) -> dict[str, ImageUnit]:
    """Return picture id -> another picture: a random cyclic order without fixed points.

    Pictures are exchanged with ones that have the same number of boxes, if any, so that object tags stay meaningful.
    """
    generator = np.random.default_rng(np.random.SeedSequence([0, len(images)]))
    groups: dict[int, list[ImageUnit]] = {}
    for image in images:
        groups.setdefault(len(image.boxes_R4), []).append(image)
    swapped: dict[str, ImageUnit] = {}
    lonely: list[ImageUnit] = []
    for group in groups.values():
        if len(group) == 1:
            lonely += group
        else:
            swapped |= _cycle(group, generator)
    if lonely:
        others = [image for image in images if image.unit_id != lonely[0].unit_id]
        swapped |= _cycle(lonely, generator) if len(lonely) > 1 else {lonely[0].unit_id: (others or lonely)[0]}
    return swapped


def with_picture(example: Example, image: ImageUnit) -> Example:
    """Return the example on another picture; tags of boxes that the picture lacks wrap around to existing ones.

    If tags have labels, which some students turn into words, a tagged box keeps the label that the text was written
    about: the picture changes, the text does not.
    """
    num_boxes = len(image.boxes_R4)
    tagged = {tag.box % num_boxes: tag.box for candidate in example.candidates for tag in candidate.tags if num_boxes}
    labels = list(image.box_labels)
    for moved, box in tagged.items():
        if moved < len(labels) and box < len(example.image.box_labels):
            labels[moved] = example.image.box_labels[box]

    def move(candidate: Candidate) -> Candidate:
        tags = tuple(replace(tag, box=tag.box % num_boxes) for tag in candidate.tags) if num_boxes else ()
        return replace(candidate, tags=tags)

    image = replace(image, box_labels=tuple(labels))
    return replace(example, image=image, candidates=tuple(move(candidate) for candidate in example.candidates))


def _cycle(images: Sequence[ImageUnit], generator: np.random.Generator) -> dict[str, ImageUnit]:
    order = generator.permutation(len(images))
    following = np.roll(order, -1)
    return {images[a].unit_id: images[b] for a, b in zip(order.tolist(), following.tolist(), strict=True)}


Picture = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAnswer:
    """The answer of a run: its text, and the logit of every possible answer."""

    text: str
    logits: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class AnsweringRun:
    """A finished run that answers questions.

    `answers` are its classes or open answers; empty if it chooses. `finished` is its student.
    """

    path: Path
    task: Task
    answers: tuple[str, ...]
    finished: FinishedRun

    def answer(self, picture: Picture, question: str, choices: Sequence[str] = ()) -> RunAnswer:
        """Answer one question about one picture.

        Args:
            picture: path, bytes or Pillow image.
            question: the question, or the text to judge for a run that learned classes.
            choices: the choices for a run that learned to choose; other runs answer from `answers`.

        Raises:
            ConfigError: choices are missing, or given to a run that does not accept them.
            DatasetError: the picture cannot be read.
        """
        chooses = self.task in MULTIPLE_CHOICE_TASKS
        if chooses and (isinstance(choices, str) or len(set(choices)) < 2):
            raise ConfigError(
                "`choices` needs at least two distinct texts.",
                where=str(self.path),
                why=f"got {choices!r}",
                next_command="give two choices or more: answer(picture, question, choices)",
            )
        if choices and not chooses:
            raise ConfigError(
                "This run takes no `choices`: it answers from the classes that it learned.",
                where=str(self.path),
                why=f"it knows {', '.join(self.answers[:5])}{', ...' if len(self.answers) > 5 else ''}",
                next_command="leave out choices: answer(picture, question)",
            )
        candidates = [compose([question], choice, 0) for choice in choices] or [compose([], question, 0)]
        with tempfile.TemporaryDirectory() as folder:
            example = Example(
                example_id="question",
                task=self.task,
                image=_unit(picture, Path(folder)),
                candidates=tuple(candidates),
                label=None,
            )
            ((logits,),) = self.finished.scores([example], batch_size=1)
        texts = tuple(choices) or self.answers
        chosen = int(first_maximum(logits[None], [question])[0])
        return RunAnswer(text=texts[chosen], logits=dict(zip(texts, logits.tolist(), strict=True)))


def open_run(path: Path, *, device: str = AUTO) -> AnsweringRun:
    """Load a finished run to ask it questions.

    Args:
        path: the run folder.
        device: the device, such as cpu or cuda:0.

    Raises:
        ConfigError: the folder contains no run, or one that learned tasks of several heads.
        WeightsUnavailable: the run is not finished.
    """
    trained_on = require_finished(path)
    compute = resolved(ComputeConfig(device=device, num_workers=1))
    finished = load_finished(path, compute, trained_on=trained_on)
    splits = [(str(trained_on["dataset"]), str(trained_on["split"]))]
    use_region_caches(finished.student, open_region_caches(regions_of_run(trained_on), splits))
    heads = described_heads(path)
    if len(heads) != 1:
        raise ConfigError(
            "`open_run` needs a run of one kind of task, and this run learned several.",
            where=str(path),
            why=", ".join(sorted(heads)),
            next_command="score it with `evaluate`, or train a run of one task",
        )
    ((name, facts),) = heads.items()
    # All choice tasks share one head, whichever of them the run learned.
    task: Task = "choice" if name == "choice" else facts["task"]
    return AnsweringRun(path=path, task=task, answers=finished.label_names[name], finished=finished)


def _unit(picture: Picture, folder: Path) -> ImageUnit:
    """Return a picture without boxes; a picture in memory is first written into the folder."""
    path = folder / "picture"
    if isinstance(picture, bytes | Image.Image):
        write_bytes(path, as_file(picture))
    else:
        path = Path(picture)
    return picture_unit(path)
