"""The census of a student's states: the states of words and regions, batch by batch, with its teachers' signal.

Landmarks, the bridge and the readout are all computed from it. It uses no labels and trains nothing.
Shapes: N sequences, W words, H student width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from advl_pipeline.datasets.records import Dataset, Example, head_name
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal, TextSignal, WordAlignment
from advl_pipeline.students.interface import Student, StudentBatch, StudentOutput
from advl_pipeline.training.batches import TrainingBatch, collate_batch
from advl_pipeline.training.config import TaskLoss
from advl_pipeline.training.signals.controls import NO_CONTROL, Control
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.targets import TaskScores, score_task


@dataclass(frozen=True, kw_only=True)
class StudentAtStart:
    """A student at the start of a step of the method, on its device, and the choice of states that a run distils."""

    student: Student
    heads: Mapping[str, nn.Module]
    settings: DistillationSettings
    hide_picture: bool = False
    control: Control = NO_CONTROL
    """Control of the signal that the student follows."""
    source: SignalSource | None = None
    """Source of teacher signals for the census."""

    @classmethod
    def without_heads(cls, student: Student, source: SignalSource) -> StudentAtStart:
        """Return the student without heads, with states that have seen only one modality."""
        return cls(student=student, heads={}, settings=DistillationSettings(distill_layer="unimodal"), source=source)

    @property
    def device(self) -> torch.device:
        """The student's device."""
        return next(self.student.parameters()).device

    def looked_at(
        self,
        dataset: Dataset,
        positions: Sequence[int],
        *,
        at_once: int,
        labelled_ids: frozenset[str] | None = frozenset(),
    ) -> Iterator[tuple[list[int], list[Example], TrainingBatch]]:
        """Yield batches for inspection outside training: positions, their examples, and the batch on the device.

        Args:
            at_once: number of examples read at once, in the order of the positions; a batch is of one task.
            labelled_ids: as for `collate_batch`; by default no label is used.
        """
        for first in range(0, len(positions), at_once):
            by_task: dict[str, tuple[list[int], list[Example]]] = {}
            for position in positions[first : first + at_once]:
                example = dataset[position]
                places, examples = by_task.setdefault(example.task, ([], []))
                places.append(position)
                examples.append(example)
            for places, examples in by_task.values():
                batch = collate_batch(
                    examples, dataset, self.student, self.source, labelled=False, labelled_ids=labelled_ids
                )
                yield places, examples, batch.to(self.device)

    def scored(
        self, task_loss: TaskLoss, dataset: Dataset, positions: Sequence[int], *, at_once: int
    ) -> Iterator[tuple[list[int], TrainingBatch, TaskScores]]:
        """Yield labelled examples with their scores, without dropout: positions, batch and scores."""
        for chosen, _, batch in self.looked_at(dataset, positions, at_once=at_once, labelled_ids=None):
            with self.evaluating():
                output = self.student.encode(batch.student, mask_visual=self.hide_picture)
                head = self.heads[head_name(batch.task)]
                scores = score_task(task_loss, head, output, batch.student.num_candidates, batch.targets)
            yield chosen, batch, scores

    def states(self, batch: StudentBatch) -> StudentOutput:
        """Return the states that the run distils."""
        if self.settings.distill_layer == "unimodal":
            return self.student.encode_unimodal(batch)
        return self.student.encode(batch, mask_visual=self.hide_picture)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Disable dropout of the student and its heads inside the block."""
        modules = (self.student, *self.heads.values())
        were_training = [module.training for module in modules]
        for module in modules:
            module.eval()
        yield
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)


def sampled(dataset: Dataset, positions: Sequence[int], *, num_texts: int) -> list[int]:
    """Return the first positions in a fixed random order, with about the requested number of texts."""
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    number = max(1, num_texts // len(dataset[positions[0]].candidates))
    return [positions[int(place)] for place in order[:number]]


@dataclass(frozen=True, kw_only=True)
class Census:
    """The states of a batch, without dropout, and the signal of the teachers that the student follows."""

    examples: Sequence[Example]
    batch: TrainingBatch
    states: StudentOutput
    signal: TeacherSignal
    words: WordAlignment
    states_NWH: torch.Tensor

    def meant(self, part: TextSignal | None = None) -> torch.Tensor:
        """Return (N, W) bool: words with a meaning, with states of the student and a teacher's features if given."""
        seen_NW = self.words.word_mask_NW if part is None else self.words.shared_with(part)
        return seen_NW & (self.words.prior_NW > 0)


def take_census(
    start: StudentAtStart, dataset: Dataset, positions: Sequence[int], *, at_once: int
) -> Iterator[Census]:
    """Yield the states of some examples.

    Args:
        start: keeps its training or evaluation mode.
        dataset: of the examples.
        positions: of the examples.
        at_once: number of examples read at once; a batch is of one task.
    """
    for _, examples, batch in start.looked_at(dataset, positions, at_once=at_once):
        assert batch.signal is not None
        with start.evaluating():
            states = start.states(batch.student)
            signal = start.control.signal(batch.signal, start.student, batch.student)
        yield census_of(examples, batch, states, signal)


def census_of(
    examples: Sequence[Example], batch: TrainingBatch, states: StudentOutput, signal: TeacherSignal
) -> Census:
    """Return the census of a batch, given the student's states and the signal that it follows."""
    words = signal.words
    assert words is not None
    states_NWH = pool_to_words(states.text_states_NLH, words.word_of_token_NL, words.prior_NW.shape[1])
    return Census(
        examples=examples,
        batch=batch,
        states=states,
        signal=signal,
        words=words,
        states_NWH=states_NWH,
    )
