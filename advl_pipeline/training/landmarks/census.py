"""The census of a student's states: where its words and regions are, batch by batch, beside its teachers' signal.

Landmarks, the bridge and the readout are all read from it. No label is used, and nothing is learned.
Shapes: N sequences, W words, H student width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from advl_pipeline.datasets.records import Dataset, Example
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal, TextSignal, WordAlignment, shared_words
from advl_pipeline.students.interface import Student, StudentBatch, StudentOutput
from advl_pipeline.training.batches import TrainingBatch, looked_at
from advl_pipeline.training.signals.controls import NO_CONTROL, Control
from advl_pipeline.training.signals.stored_signals import SignalSource


@dataclass(frozen=True, kw_only=True)
class StudentAtStart:
    """A student as a step of the method begins, on its device, and which of its states a run distils."""

    student: Student
    heads: Mapping[str, nn.Module]
    settings: DistillationSettings
    hide_picture: bool = False
    control: Control = NO_CONTROL
    """Of what it follows of its teachers."""
    source: SignalSource | None = None
    """Of the signals of teachers that it is looked at beside."""

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.parameters()).device

    def looked_at(
        self,
        dataset: Dataset,
        positions: Sequence[int],
        *,
        at_once: int,
        labelled_ids: frozenset[str] | None = frozenset(),
    ) -> Iterator[tuple[list[int], list[Example], TrainingBatch]]:
        """Yield examples as `batches.looked_at` does, on the device of the student."""
        return looked_at(
            dataset,
            positions,
            self.student,
            self.source,
            at_once=at_once,
            device=self.device,
            labelled_ids=labelled_ids,
        )

    def states(self, batch: StudentBatch) -> StudentOutput:
        """Return the states that the run distils."""
        if self.settings.distill_layer == "unimodal":
            return self.student.encode_unimodal(batch)
        return self.student.encode(batch, mask_visual=self.hide_picture)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Take dropout out of the student and its heads inside the block."""
        modules = (self.student, *self.heads.values())
        were_training = [module.training for module in modules]
        for module in modules:
            module.eval()
        yield
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)


@dataclass(frozen=True, kw_only=True)
class Census:
    """The states of a batch, without dropout, and the signal of its teachers as the student follows it."""

    examples: Sequence[Example]
    batch: TrainingBatch
    states: StudentOutput
    signal: TeacherSignal
    words: WordAlignment
    states_NWH: torch.Tensor
    seen_NW: torch.Tensor

    def meant(self, part: TextSignal | None = None) -> torch.Tensor:
        """Return (N, W) bool: the words with a meaning that the student has states of, and a teacher features."""
        seen_NW = (
            self.words.word_mask_NW & self.seen_NW if part is None else shared_words(self.words, part, self.seen_NW)
        )
        return seen_NW & (self.words.prior_NW > 0)


def take_census(
    start: StudentAtStart, dataset: Dataset, positions: Sequence[int], *, at_once: int
) -> Iterator[Census]:
    """Yield the states of some examples.

    Args:
        start: left in the mode that it was in.
        dataset: that the examples are of.
        positions: theirs.
        at_once: so many are read at once; a batch is of one task.
    """
    for _, examples, batch in start.looked_at(dataset, positions, at_once=at_once):
        assert batch.signal is not None
        words = batch.signal.words
        assert words is not None
        with start.evaluating():
            states = start.states(batch.student)
            signal = start.control.signal(batch.signal, start.student, batch.student)
        states_NWH, seen_NW = pool_to_words(states.text_states_NLH, words.word_of_token_NL, words.prior_NW.shape[1])
        yield Census(
            examples=examples,
            batch=batch,
            states=states,
            signal=signal,
            words=words,
            states_NWH=states_NWH,
            seen_NW=seen_NW,
        )
