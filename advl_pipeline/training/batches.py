"""Training batches: a pure order over the examples, cut into micro-batches, collated on the background thread."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.order import epoch_order
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import Example
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.training.signals import SignalSource
from advl_pipeline.training.targets import TaskTargets, collate_targets

ANNOUNCE_AHEAD = 8
"""Optimiser steps whose examples are read, and whose units the kernel is told about, before they are needed."""


@dataclass(kw_only=True)
class TrainingBatch:
    """One micro-batch. `image_ids_B` (int64) is equal where two examples show the same picture."""

    example_ids: tuple[str, ...]
    task: str
    student: StudentBatch
    targets: TaskTargets
    signal: TeacherSignal | None
    image_ids_B: torch.Tensor

    def to(self, device: torch.device) -> TrainingBatch:
        """Return the batch with every tensor on a device."""
        return TrainingBatch(
            example_ids=self.example_ids,
            task=self.task,
            student=self.student.to(device),
            targets=self.targets.to(device),
            signal=None if self.signal is None else self.signal.to(device),
            image_ids_B=self.image_ids_B.to(device),
        )


def positions_of_step(num_examples: int, *, step: int, batch_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the positions of the examples of optimiser step `step`: a pure function, so any step can be resumed at.

    The stream is the concatenation of epochs, each a permutation of all examples, so every example comes exactly
    once per epoch; a batch may span two epochs.
    """
    first = step * batch_size
    epochs = range(first // num_examples, (first + batch_size - 1) // num_examples + 1)
    stream = np.concatenate([epoch_order(num_examples, seed=seed, epoch=epoch) for epoch in epochs])
    offset = first - epochs.start * num_examples
    return stream[offset : offset + batch_size]


def split_for_rank(
    positions: npt.NDArray[np.int64], *, accumulate: int, rank: int, world_size: int
) -> list[npt.NDArray[np.int64]]:
    """Cut one optimiser step's examples into the micro-batches of one rank; together the ranks see each once."""
    return [part for part in np.array_split(np.array_split(positions, world_size)[rank], accumulate) if len(part)]


def training_batches(
    dataset: Dataset,
    indices: Sequence[int],
    student: Student,
    source: SignalSource | None,
    *,
    steps: range,
    batch_size: int,
    accumulate: int,
    seed: int,
    labelled: bool,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[list[TrainingBatch]]:
    """Yield, for each optimiser step, the micro-batches of this rank.

    Args:
        dataset: the training split.
        indices: positions in the dataset that are trained on.
        student: whose `collate` is used.
        source: of the teachers' signals, None for methods without.
        steps: the steps to yield, such as from a checkpoint's step on.
        batch_size: examples per step over all ranks.
        accumulate: micro-batches per step and rank.
        seed: of the order.
        labelled: whether confidences in the ground truth are looked up.
        rank: of this process.
        world_size: number of processes.
    """

    def parts(step: int) -> list[list[Example]]:
        positions = positions_of_step(len(indices), step=step, batch_size=batch_size, seed=seed)
        shares = split_for_rank(positions, accumulate=accumulate, rank=rank, world_size=world_size)
        return [[dataset[indices[position]] for position in share] for share in shares]

    remaining = iter(steps)
    waiting: deque[list[list[Example]]] = deque()
    for _ in steps:
        while len(waiting) < ANNOUNCE_AHEAD and (step := next(remaining, None)) is not None:
            waiting.append(parts(step))
            if source is not None:
                source.announce([example for part in waiting[-1] for example in part])
        yield [collate_batch(examples, dataset, student, source, labelled=labelled) for examples in waiting.popleft()]


def collate_batch(
    examples: list[Example], dataset: Dataset, student: Student, source: SignalSource | None, *, labelled: bool
) -> TrainingBatch:
    """Return the batch of examples of one task; with `labelled`, with the teachers' confidences."""
    batch = student.collate(examples)
    signal = source.signal(examples, batch, with_confidence=labelled) if source else None
    return TrainingBatch(
        example_ids=tuple(example.example_id for example in examples),
        task=examples[0].task,
        student=batch,
        targets=collate_targets(examples, len(dataset.label_names(examples[0].task))),
        signal=signal,
        image_ids_B=torch.tensor([zlib.crc32(example.image.unit_id.encode()) for example in examples]),
    )
