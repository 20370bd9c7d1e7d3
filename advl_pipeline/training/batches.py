"""Training batches: one thread reads and announces the examples, several collate, and batches are sent ahead.

Batches reach the GPU one step ahead: they are copied and turned into targets while the model computes. They are
collated into pinned memory, so that the GPU copies them asynchronously. Copies and targets use a separate stream, and
the consumer's stream waits for them. On a CPU nothing is copied.
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
from advl_pipeline.students.abilities import Generates, Prefetches
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.training.batch_order import BatchOrder
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.targets import TaskTargets, collate_targets

CPU = torch.device("cpu")

ANNOUNCE_AHEAD = 8
"""Optimiser steps whose examples are read, and whose units are announced to the kernel, before they are needed."""


@dataclass(kw_only=True)
class TrainingBatch:
    """One micro-batch, in memory or on the computing device, where targets are made from the `signal`.

    `image_ids_B` (int64) is equal where two examples show the same picture. `anchored_B` (bool) is False for pictures
    from a split that is not trained on, because pretraining may not have seen such pictures.
    `seconds_preparing` is the processor time of collation.
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
        """Return the batch on a device, where targets are made from the features."""
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

    Their content does not depend on the number of threads.

    Args:
        indices: positions in the dataset to train on.
        student: provides `collate`.
        source: provides the teachers' signals; None for methods without.
        steps: the steps to yield, for example from a checkpoint's step on.
        order: the examples of each step, by position in `indices`.
        labelled: whether confidences in the ground truth are looked up.
        labelled_ids: examples whose labels may be used, None for all.
        other_ids: examples from splits that are not trained on.
        num_workers: threads that collate, each a step of its own.
        device: the computing device.
    """

    def collate(examples: list[Example]) -> TrainingBatch:
        began = time.thread_time()
        batch = collate_batch(
            examples, dataset, student, source, labelled=labelled, labelled_ids=labelled_ids, other_ids=other_ids
        )
        # On a CPU the collating threads make the targets too.
        batch = batch.to(device) if device.type == "cpu" else batch
        batch.seconds_preparing = time.thread_time() - began
        return in_pinned_memory(batch) if device.type == "cuda" else batch

    readers = [reader for reader in (student, source) if isinstance(reader, Prefetches)]
    read = _read_ahead(dataset, indices, readers, steps, order)
    made = in_order(lambda step: [collate(part) for part in step], read, num_workers=num_workers)
    yield from send_ahead(made, device)


def _read_ahead(
    dataset: Dataset,
    indices: Sequence[int],
    readers: Sequence[Prefetches],
    steps: range,
    order: BatchOrder,
) -> Iterator[list[list[Example]]]:
    """Yield the examples of each step by micro-batch; announce those of the next steps."""

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
    """Return the batch of examples of one task; with `labelled`, include the teachers' confidences.

    Only labels of `labelled_ids` are used, if given. Answers in words are included only if all labels may be used,
    because the adapt stage scores none.
    """
    task, names = examples[0].task, dataset.label_names(examples[0].task)
    batch = student.collate(examples)
    targets = collate_targets(examples, len(names), labelled_ids=labelled_ids)
    signal = None
    if source is not None:
        signal = source.signal(examples, batch, with_confidence=labelled, places=student.places)
    if labelled_ids is None and isinstance(student, Generates):
        wanted_BK = None if targets.scores_BK is None else targets.scores_BK > 0
        batch = student.with_answers(batch, task, names, wanted_BK)
    return TrainingBatch(
        example_ids=tuple(example.example_id for example in examples),
        task=task,
        student=batch,
        targets=targets,
        signal=signal,
        anchored_B=torch.tensor([example.example_id not in other_ids for example in examples]),
        image_ids_B=picture_numbers(examples),
    )


def picture_numbers(examples: Sequence[Example]) -> torch.Tensor:
    """Return (B,) int64, equal where two examples show the same picture."""
    return torch.tensor([zlib.crc32(example.image.unit_id.encode()) for example in examples])


Sent = tuple[list[TrainingBatch], torch.cuda.Event | None]
"""The micro-batches of a step, and an event that marks their arrival on a GPU."""


def received(sent: Sent, device: torch.device) -> list[TrainingBatch]:
    """Return the micro-batches; the device's next work on this thread waits until they have arrived."""
    batches, arrived = sent
    if arrived is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(arrived)

        def keep(value: torch.Tensor) -> torch.Tensor:
            # The memory belongs to the other stream, which may reuse it only after this one has finished with it.
            if value.is_cuda:
                value.record_stream(stream)
            return value

        for batch in batches:
            with_tensors(batch, keep)
    return batches


def in_pinned_memory(batch: TrainingBatch) -> TrainingBatch:
    """Return the batch in pinned memory."""
    return with_tensors(batch, lambda value: value.pin_memory())


def send_ahead(steps: Iterable[Sequence[TrainingBatch]], device: torch.device) -> Iterator[Sent]:
    """Send the micro-batches of each step to a device, on a separate stream if it is a GPU.

    On a CPU they are already there.
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
