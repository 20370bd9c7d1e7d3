"""Training batches: the examples of each step, read and announced on one thread, collated on several, sent ahead.

On their way to a GPU they are one step ahead: copied, and made targets of, while the model computes. A batch
is collated into memory that is never paged out, so that the GPU copies it without a thread's help. Copies and
targets have a stream of their own; who takes a batch has its own stream wait for them. On a CPU nothing travels.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from advl_pipeline.base.prefetch import in_order
from advl_pipeline.base.tensors import moved, with_tensors
from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.training.batch_order import BatchOrder
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.targets import TaskTargets, collate_targets

CPU = torch.device("cpu")

ANNOUNCE_AHEAD = 8
"""Optimiser steps whose examples are read, and whose units are announced to the kernel, before they are needed."""


@dataclass(kw_only=True)
class TrainingBatch:
    """One micro-batch, in memory or on the device that computes it, where targets are made of the `signal`.

    `image_ids_B` (int64) is equal where two examples show the same picture. `anchored_B` (bool) is False for pictures
    of another split than the one that is trained on: pretraining may never have seen their like.
    `seconds_preparing` is the processor time of collating it.
    """

    example_ids: tuple[str, ...]
    task: str
    student: StudentBatch
    targets: TaskTargets
    signal: TeacherSignal | None = None
    image_ids_B: torch.Tensor
    anchored_B: torch.Tensor
    seconds_preparing: float = 0.0

    def to(self, device: torch.device) -> TrainingBatch:
        """Return the batch on a device, where targets are made of the features."""
        return replace(
            self,
            student=self.student.to(device),
            targets=moved(self.targets, device),
            signal=None if self.signal is None else self.signal.to(device),
            image_ids_B=self.image_ids_B.to(device, non_blocking=True),
            anchored_B=self.anchored_B.to(device, non_blocking=True),
        )


def training_batches(
    dataset: Dataset,
    indices: Sequence[int],
    student: Student,
    source: SignalSource | None,
    steps: range,
    *,
    order: BatchOrder,
    labelled: bool,
    labelled_ids: frozenset[str] | None = None,
    other_ids: frozenset[str] = frozenset(),
    num_workers: int = 1,
    device: torch.device = CPU,
) -> Iterator[Sent]:
    """Yield, for each optimiser step, the micro-batches of this rank, on their way to the device.

    What they hold does not depend on the number of threads.

    Args:
        indices: positions in the dataset that are trained on.
        student: whose `collate` is used.
        source: of the teachers' signals, None for methods without.
        steps: the steps to yield, such as from a checkpoint's step on.
        order: which examples a step takes, by position in `indices`.
        labelled: whether confidences in the ground truth are looked up.
        labelled_ids: examples whose labels may be used, None for all.
        other_ids: examples of other splits than the one that is trained on.
        num_workers: threads that collate, each a step of its own.
        device: that computes.
    """

    def collate(examples: list[Example]) -> TrainingBatch:
        began = time.thread_time()
        batch = collate_batch(
            examples, dataset, student, source, labelled=labelled, labelled_ids=labelled_ids, other_ids=other_ids
        )
        # On a CPU, targets are made by the threads, too.
        batch = batch.to(device) if device.type == "cpu" else batch
        batch.seconds_preparing = time.thread_time() - began
        return in_pinned_memory(batch) if device.type == "cuda" else batch

    readers: list[Student | SignalSource] = [student] if source is None else [student, source]
    read = _read_ahead(dataset, indices, readers, steps, order)
    made = in_order(lambda step: [collate(part) for part in step], read, num_workers=num_workers)
    yield from send_ahead(made, device)


def _read_ahead(
    dataset: Dataset,
    indices: Sequence[int],
    readers: Sequence[Student | SignalSource],
    steps: range,
    order: BatchOrder,
) -> Iterator[list[list[Example]]]:
    """Yield the examples of each step, micro-batch by micro-batch; those of the steps to come are announced."""

    def parts(step: int) -> list[list[Example]]:
        return [[dataset[indices[position]] for position in share] for share in order.micro_batches(step)]

    remaining = iter(steps)
    waiting: deque[list[list[Example]]] = deque()
    num_announced = 0
    for _ in steps:
        while len(waiting) < ANNOUNCE_AHEAD and (step := next(remaining, None)) is not None:
            waiting.append(parts(step))
            coming = [example for part in waiting[-1] for example in part]
            begins = num_announced >= len(indices)
            for reader in readers:
                if begins:
                    reader.begin_epoch()
                reader.announce(coming)
            num_announced = len(coming) + (0 if begins else num_announced)
        yield waiting.popleft()


def collate_batch(
    examples: list[Example],
    dataset: Dataset,
    student: Student,
    source: SignalSource | None,
    *,
    labelled: bool,
    labelled_ids: frozenset[str] | None = None,
    other_ids: frozenset[str] = frozenset(),
) -> TrainingBatch:
    """Return the batch of examples of one task; with `labelled`, with the teachers' confidences.

    Labels are used of `labelled_ids` alone, where given. Answers in words are laid out where all labels may be used:
    the adapt step scores none.
    """
    task, names = examples[0].task, dataset.label_names(examples[0].task)
    batch = student.collate(examples)
    targets = collate_targets(examples, len(names), labelled_ids=labelled_ids)
    signal = None
    if source is not None:
        signal = source.signal(examples, batch, with_confidence=labelled, places=student.places)
    if labelled_ids is None:
        wanted_BK = None if targets.scores_BK is None else targets.scores_BK > 0
        batch = student.with_answers(batch, task, names, wanted_BK)
    return TrainingBatch(
        example_ids=tuple(example.example_id for example in examples),
        task=task,
        student=batch,
        targets=targets,
        signal=signal,
        anchored_B=torch.tensor([example.example_id not in other_ids for example in examples]),
        image_ids_B=torch.tensor([zlib.crc32(example.image.unit_id.encode()) for example in examples]),
    )


Sent = tuple[list[TrainingBatch], torch.cuda.Event | None]
"""The micro-batches of a step, and what tells that they have arrived on a GPU."""


def received(sent: Sent, device: torch.device) -> list[TrainingBatch]:
    """Return the micro-batches; what this thread computes on the device next waits until they are there."""
    batches, arrived = sent
    if arrived is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(arrived)

        def keep(value: torch.Tensor) -> torch.Tensor:
            # Their memory is the other stream's, which may use it again only after this one has passed them.
            if value.is_cuda:
                value.record_stream(stream)
            return value

        for batch in batches:
            with_tensors(batch, keep)
    return batches


def in_pinned_memory(batch: TrainingBatch) -> TrainingBatch:
    """Return a batch in memory that is never paged out."""
    return with_tensors(batch, lambda value: value.pin_memory())


def send_ahead(steps: Iterable[Sequence[TrainingBatch]], device: torch.device) -> Iterator[Sent]:
    """Send the micro-batches of each step to a device, on a stream of their own where it is a GPU.

    On a CPU they are there already.
    """
    if device.type != "cuda":
        for step in steps:
            yield [batch if device.type == "cpu" else batch.to(device) for batch in step], None
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for step in steps:
        with torch.cuda.stream(stream):
            batches = [batch.to(device) for batch in step]
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        yield batches, arrived
