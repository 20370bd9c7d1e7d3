"""What only some students, and some heads, can do: protocols, which callers ask for by `isinstance`.

A class has an ability if it has the members of the protocol; it need not derive from it.
Shapes: B examples, N sequences, L text tokens, K classes or answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Example
from advl_pipeline.students.checkpoints import KeyRules, LoadReport
from advl_pipeline.students.interface import LabelledChoices, Perturbation, Student


@runtime_checkable
class Perturbable(Protocol):
    """Adds perturbations to its inputs, for adversarial finetuning (VILLA)."""

    def zero_perturbation(self, batch: Any, *, text: bool = True, visual: bool = True) -> Perturbation:
        """Return a perturbation of zeros, shaped like the words and the visual features of a batch.

        Args:
            batch: on the student's device.
            text: whether to perturb words; None is returned for them otherwise.
            visual: likewise for visual features.
        """


@runtime_checkable
class Generates(Protocol):
    """Answers in words: scores answers by their likelihood (`StudentOutput.answered`) and generates them."""

    def with_answers(
        self, batch: Any, task: str, label_names: Sequence[str], wanted_BK: torch.Tensor | None = None
    ) -> Any:
        """Return the batch with the answers to score.

        Args:
            batch: output of `collate`, before it is moved.
            label_names: names of the task's K classes or answers.
            wanted_BK: bool, the answers whose scores are needed, None for all.
        """

    def generate(self, batch: Any) -> list[str]:
        """Generate an answer in words for each sequence of a batch without answers."""


@runtime_checkable
class HasTextLimit(Protocol):
    """Reads texts of at most `max_text_length` tokens, special tokens included."""

    @property
    def max_text_length(self) -> int: ...

    def count_cut(self, examples: Sequence[Example]) -> int:
        """Count the texts that `collate` would truncate, without opening pictures."""

    def cut_texts(self) -> None:
        """Truncate texts that are too long from now on, instead of refusing them."""


@runtime_checkable
class TokenisesTexts(Protocol):
    """Tokenises texts without opening pictures, for heads that read the texts of a split (`ReadsTexts`)."""

    def text_tokens(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask of the examples' texts, (N, L), as `collate` does."""


@runtime_checkable
class ReadsTexts(Protocol):
    """A head with statistics of the texts."""

    def read_texts(self, texts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Receive the texts of a split before training: token ids and mask (N, L) per batch."""


@runtime_checkable
class ReadsChoices(Protocol):
    """A head that labels fit before training."""

    def read_choices(self, questions: Iterable[LabelledChoices]) -> None:
        """Receive labelled multiple-choice questions before the finetune stage, in batches."""


@runtime_checkable
class Prefetches(Protocol):
    """Prefetches the inputs of examples."""

    def announce(self, examples: Sequence[Example]) -> None:
        """Announce the next examples to read."""

    def begin_epoch(self) -> None:
        """Announce that all examples will be read again."""


@runtime_checkable
class StartsFromTowers(Protocol):
    """Copies the weights of the teachers `towers` before training."""

    towers: ClassVar[tuple[str, ...]]

    def take_towers(self, networks: Sequence[nn.Module]) -> None:
        """Copy the weights of the networks of `towers`."""


@runtime_checkable
class HasInputFiles(Protocol):
    """Reads examples with files beside its weights: a tokenizer or a processor."""

    def require_inputs(self) -> None:
        """Refuse a student that cannot read any example, before anything is written.

        Raises:
            ConfigError: the files do not fit the student. WeightsUnavailable: they are missing.
        """

    def save_inputs(self, folder: Path) -> None:
        """Save the files next to the weights."""

    @classmethod
    def settings_beside(cls, weights: Path) -> dict[str, Any]:
        """Return the settings found next to published or saved weights, such as the tokenizer's folder."""


@runtime_checkable
class HasCaveats(Protocol):
    """Tells readers of its scores about its inputs."""

    def caveats(self) -> tuple[str, ...]:
        """Return the caveats."""


@runtime_checkable
class LoadsPublished(Protocol):
    """Loads published weights in a way of its own; others load them by their `rules`."""

    def load_published(self, path: Path) -> LoadReport:
        """Load a published checkpoint, file or folder; keys that do not fit raise no error.

        Raises:
            ConfigError: no key fits. WeightsUnavailable: the checkpoint is missing or damaged.
        """


@runtime_checkable
class HasPublishedHeads(Protocol):
    """Has task heads in its published checkpoints."""

    def head_rules(self, kind: str) -> KeyRules:
        """Return the rules that extract the head of a kind from a checkpoint."""


def added(student: Student, perturbation: Perturbation | None) -> Perturbation:
    """Return the perturbation of a pass, an empty one for None; raises like `require_perturbable`."""
    if perturbation is None:
        return Perturbation()
    require_perturbable(student)
    return perturbation


def require_perturbable(student: Student) -> None:
    """Refuse a student whose inputs cannot be perturbed.

    Raises:
        ConfigError: its inputs differ from VILLA's.
    """
    if not isinstance(student, Perturbable):
        raise ConfigError(
            f"{student.name} takes no adversarial perturbations.",
            why="VILLA perturbs word embeddings and a detector's features, which are not this student's inputs",
            next_command="choose a region student, such as villa-base",
        )


def towers_of(student: Student) -> tuple[str, ...]:
    """Return the teachers whose weights a student starts from."""
    return student.towers if isinstance(student, StartsFromTowers) else ()


def caveats_of(student: Student) -> tuple[str, ...]:
    """Return the caveats about a student's inputs."""
    return student.caveats() if isinstance(student, HasCaveats) else ()
