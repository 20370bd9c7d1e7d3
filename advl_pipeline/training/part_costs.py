"""What each part of a training step costs: milliseconds of a micro-batch, and bytes read per example.

Measured at the end of a run on its own model and data, so that it costs at most about five hundredths of the run
and changes nothing of it. Pathways are timed from the student's states on, forward and backward with their
projections, because the student's own pass is shared with the task.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import Example, head_name
from advl_pipeline.students.interface import StudentOutput
from advl_pipeline.training.batches import TrainingBatch, collate_batch
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.signals import SignalSource, TeacherFeatures
from advl_pipeline.training.targets import right_sequences, score_task

STEPS_PER_REPEAT = 50
MAX_REPEATS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PartCosts:
    """Medians over repeats. `milliseconds` by part: student, vision, text, contrast, reading; those there are."""

    num_examples: int
    milliseconds: dict[str, float]
    bytes_per_example: dict[str, float]


def num_repeats(num_steps: int) -> int:
    """Return how often the parts of a run of so many steps are timed: never in a very short one."""
    return min(MAX_REPEATS, num_steps // STEPS_PER_REPEAT)


def measure_parts(
    model: FinetuneModel,
    dataset: Dataset,
    examples: list[Example],
    source: SignalSource | None,
    *,
    device: torch.device,
    repeats: int,
    contrasts: bool,
) -> PartCosts:
    """Time the parts of a step on one micro-batch; parameters are left as they are, without gradients.

    Args:
        examples: a micro-batch of one task.
        source: of the teachers' signals, None for a method without.
        repeats: at least 1.
        contrasts: whether the run has an adapt step with the contrastive objective.
    """
    batch = collate_batch(examples, dataset, model.student, source, labelled=False)
    found: dict[str, float] = {}
    if source is not None:
        read = source
        found["reading"] = _median(
            lambda: read.signal(examples, batch.student, with_confidence=False, places=model.student.places),
            repeats,
            torch.device("cpu"),
        )
    batch = batch.to(device)
    found["student"] = _median(lambda: _task_step(model, batch), repeats, device)
    if batch.signal is not None:
        with torch.no_grad():
            output = (
                model.student.encode_unimodal(batch.student)
                if model.distiller.settings.distill_layer == "unimodal"
                else model.encode(batch.student, need_relevance=model.distiller.needs_relevance)
            )
        for part, signal in (
            ("vision", replace(batch.signal, text={})),
            ("text", replace(batch.signal, vision={})),
        ):
            if model.distiller.teachers[part] and getattr(signal, part):
                single = replace(batch, signal=signal)
                found[part] = _median(partial(_pathway_step, model, single, output, part), repeats, device)
    if contrasts:
        found["contrast"] = _median(lambda: _contrast_step(model, batch), repeats, device)
    model.zero_grad(set_to_none=True)
    return PartCosts(
        num_examples=len(examples),
        milliseconds=found,
        bytes_per_example={
            teacher.name: _bytes_read(teacher, examples) / len(examples)
            for teacher in (source.teachers if source else ())
        },
    )


def _median(part: Callable[[], object], repeats: int, device: torch.device) -> float:
    seconds = []
    for _ in range(repeats):
        _wait_for(device)
        began = time.perf_counter()
        part()
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return 1000.0 * statistics.median(seconds)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _task_step(model: FinetuneModel, batch: TrainingBatch) -> None:
    needs_relevance = batch.signal is not None and model.distiller.needs_relevance
    output = model.encode(batch.student, need_relevance=needs_relevance)
    head, num_candidates = model.heads[head_name(batch.task)], batch.student.num_candidates
    scored = score_task(model.task_loss, head, output, num_candidates, batch.targets)
    scored.loss.backward()  # type: ignore[no-untyped-call]


def _pathway_step(model: FinetuneModel, batch: TrainingBatch, output: StudentOutput, part: str) -> None:
    assert batch.signal is not None
    states = {item.name: getattr(output, item.name) for item in fields(output)}
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in states.items()
        if isinstance(value, torch.Tensor) and name != "relevance_NL"
    }
    every_N = torch.ones(batch.student.num_sequences, dtype=torch.bool, device=output.pooled_NP.device)
    terms = model.distiller.terms(
        StudentOutput(**{**states, **leaves}),
        batch.student,
        batch.signal,
        every_N,
        batch.image_ids_B,
        relevance_NL=output.relevance_NL,
        generator=torch.Generator().manual_seed(0),
    )
    terms.pathways[part].value_B.mean().backward()  # type: ignore[no-untyped-call]


def _contrast_step(model: FinetuneModel, batch: TrainingBatch) -> None:
    separate = model.student.encode_unimodal(batch.student)
    right_B = right_sequences(batch.targets, batch.student.num_candidates).to(batch.image_ids_B.device)
    model.distiller.contrast(separate, batch.student, right_B, batch.image_ids_B).backward()  # type: ignore[no-untyped-call]


def _bytes_read(teacher: TeacherFeatures, examples: list[Example]) -> int:
    total = 0
    if teacher.image is not None:
        ids = [example.image.unit_id for example in examples]
        total += teacher.image.global_features(ids).nbytes
        if teacher.image_places is not None:
            total += teacher.image.token_features(ids)[0].nbytes
    if teacher.text is not None:
        ids = [candidate.text_unit.unit_id for example in examples for candidate in example.candidates]
        total += teacher.text.global_features(ids).nbytes
        if teacher.text.has_tokens:
            total += teacher.text.token_features(ids)[0].nbytes + teacher.text.char_spans(ids).nbytes
    return total
