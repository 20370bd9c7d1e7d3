"""The adapter that every student implements; what only some can do is in `abilities.py`.

Shapes: B examples, N = sum of their candidates (sequences), L text tokens, R visual tokens, H width, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, Generic, Literal, Self, cast

import numpy as np
import torch
from torch import nn
from typing_extensions import TypeVar

from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.tensors import moved
from advl_pipeline.datasets.records import Example
from advl_pipeline.students.presets import published_presets

States = TypeVar("States")
BatchT = TypeVar("BatchT", bound="StudentBatch", default=Any)
OutputT = TypeVar("OutputT", bound="StudentOutput", default=Any)
PlaceKind = Literal["patches", "regions"]
"""Kind of visual tokens with a place: patches of a regular grid over the picture, or regions of any place."""


@dataclass(kw_only=True)
class StudentBatch:
    """A padded batch of sequences, one per candidate.

    `token_ids_NL` (int64) contains the text tokens. `token_mask_NL` and `visual_mask_NR` (bool) are False for
    padding. `char_spans_NL2` (int64) gives the characters of `Candidate.text` that each token covers, (0, 0) for
    special tokens and padding. `box_index_NR` (int64) gives the row of `ImageUnit.boxes_R4` for each visual token,
    -1 for whole-image tokens, grid patches and padding. `places_BR4` (float32) gives the box of each visual token in
    its example's picture: x1, y1, x2, y2 as fractions of width and height, NaN for tokens without a place (class
    tokens, the whole picture, padding). It is None if the student does not know places. Students subclass the batch
    to add their own tensors. `to` moves every tensor field.
    """

    picture_field: ClassVar[str] = ""
    """Name of the tensor with the pictures' content, without the boxes' positions."""
    blank_value: ClassVar[int] = 0
    """Value of that tensor for a blank picture."""

    num_candidates: tuple[int, ...]
    """Number of sequences of each of the B examples; an example's sequences are adjacent."""
    example_N: torch.Tensor = field(default_factory=partial(torch.empty, 0, dtype=torch.int64))
    """Index of each sequence's example, int64; computed from `num_candidates`."""
    first_B: torch.Tensor = field(default_factory=partial(torch.empty, 0, dtype=torch.int64))
    """Index of each example's first sequence, int64; computed from `num_candidates`."""
    num_cut: int = 0
    """Number of texts truncated to the student's maximum length."""
    token_ids_NL: torch.Tensor
    token_mask_NL: torch.Tensor
    char_spans_NL2: torch.Tensor
    visual_mask_NR: torch.Tensor
    box_index_NR: torch.Tensor
    places_BR4: torch.Tensor | None = None

    def __post_init__(self) -> None:
        # Computed here, on the CPU: turning a list into a tensor on a device would synchronise with it.
        if not len(self.example_N):
            counts = np.array(self.num_candidates)
            self.example_N = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
            self.first_B = torch.from_numpy(np.cumsum(counts) - counts)

    @property
    def num_sequences(self) -> int:
        return self.token_ids_NL.shape[0]

    def per_sequence(self, value_B: torch.Tensor) -> torch.Tensor:
        """Repeat each example's rows for its candidates: (B, ...) -> (N, ...)."""
        if value_B.shape[0] == self.num_sequences:
            return value_B
        return value_B.index_select(0, self.example_N)

    def to(self, device: torch.device) -> Self:
        """Move every tensor of the batch to a device, in place."""
        for item in fields(self):
            setattr(self, item.name, moved(getattr(self, item.name), device))
        return self

    def blanked(self) -> Self:
        """Return the batch with blank pictures; boxes, tags and masks stay.

        Raises:
            ConfigError: the batch does not name the tensor with its pictures.
        """
        if not self.picture_field:
            raise ConfigError(
                f"{type(self).__name__} does not say where its pictures are, so they cannot be blanked.",
                why="its class sets no picture_field",
                next_command=advise(
                    note="score the other conditions",
                    again=("--probe", "swapped", "--probe", "removed"),
                    left_out=("--probe",),
                ),
            )
        content = torch.full_like(getattr(self, self.picture_field), self.blank_value)
        return replace(self, **{self.picture_field: content})  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Answered:
    """Log-likelihoods (N, K) of answers in words, float32, each summed over its number of tokens (N, K).

    K is 1 if each sequence contains its own answer, as candidates do. Answers that were not requested have 0 tokens.
    """

    log_likelihood_NK: torch.Tensor
    num_tokens_NK: torch.Tensor
    length_normalised: bool

    @property
    def scores(self) -> torch.Tensor:
        """Scores that rank the answers, (N, K); -inf for answers that were not requested."""
        scores = self.log_likelihood_NK
        if self.length_normalised:
            scores = scores / self.num_tokens_NK.clamp(min=1)
        return scores.masked_fill(self.num_tokens_NK == 0, -torch.inf)


@dataclass(kw_only=True)
class StudentOutput:
    """The output of a student for a batch.

    `image_state_NH` is the student's whole-image token. It is None for a student without one; the mean of the visual
    states is used instead. `relevance_NL` is the attention mass from each text token to the visual tokens, detached,
    if the student can compute it. `answered` is set by a student that answers in words, if the batch contains
    answers; no head is called then. A student whose heads read more (`OutputHead`) subclasses the output.
    """

    text_states_NLH: torch.Tensor
    visual_states_NRH: torch.Tensor
    pooled_NP: torch.Tensor
    image_state_NH: torch.Tensor | None = None
    relevance_NL: torch.Tensor | None = None
    answered: Answered | None = None

    def class_logits(self, head: nn.Module) -> torch.Tensor:
        """Return class logits (N, K): those of a head, or the scores of answers in words."""
        if self.answered is not None:
            return self.answered.scores
        logits: torch.Tensor = head(self if isinstance(head, OutputHead) else self.pooled_NP)
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Low-rank updates of a student: their rank, the scale alpha / rank, and the names of the updated modules.

    A module is skipped if the regular expression `excluded` matches its full name.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    excluded: str = ""


@dataclass(kw_only=True)
class Perturbation:
    """Additive perturbations for adversarial training (VILLA) of the word embeddings and the raw visual features."""

    text_NLE: torch.Tensor | None = None
    visual_NRF: torch.Tensor | None = None

    def of_words(self, words_NLE: torch.Tensor) -> torch.Tensor:
        """Return the word embeddings, perturbed."""
        return words_NLE if self.text_NLE is None else words_NLE + self.text_NLE

    def of_features(self, features_NRF: torch.Tensor) -> torch.Tensor:
        """Return the visual features, perturbed."""
        return features_NRF if self.visual_NRF is None else features_NRF + self.visual_NRF


@dataclass(frozen=True, kw_only=True)
class LabelledChoices(Generic[OutputT]):
    """A batch of labelled multiple-choice questions, without gradient: `output` has a sequence for each choice."""

    output: OutputT
    examples: Sequence[Example]
    label_B: torch.Tensor


class OutputHead(nn.Module, ABC, Generic[OutputT]):
    """A head that reads more of a student's output than its pooled state."""

    @abstractmethod
    def forward(self, output: OutputT) -> torch.Tensor:
        """Return logits (N, K)."""


class AnswerHead(nn.Module):
    """Placeholder for a head if answers are words; it has no parameters and is never called."""

    def forward(self, pooled_NP: torch.Tensor) -> torch.Tensor:
        raise ValueError("a student that answers in words was given no answers to score")


class Student(nn.Module, ABC, Generic[BatchT]):
    """A joint encoder of text and picture that builds a head for each task.

    A subclass sets the attributes and has three methods: `collate`, `encode` and `build_head`. It may replace the
    three passes below them by faster ones. What only some students can do are the protocols of `abilities.py`.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published_presets()
    """Name -> settings that differ from the defaults of the configuration class."""
    name: str
    config: Any
    """Its settings, a dataclass of plain JSON types, enough to build the same student again."""
    hidden_size: int
    """Width H of text and visual states."""
    pooled_size: int
    """Width P of the pooled state; equal to H for most students."""
    lora: LoraSettings | None = None
    """Low-rank updates of a run that starts from published weights; None trains all weights."""
    places: PlaceKind | None = None
    """Kind of its visual tokens with a place. None: batches have no `places_BR4`, and no teacher's grid can be
    aligned with them."""

    _shared: dict[str, list[tuple[Sequence[torch.Tensor], Any]]] | None = None
    """Cached inputs and outputs of the layers below the fusion."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> BatchT:
        """Tokenise and pad; open pictures or region features if the student needs them."""

    @abstractmethod
    def encode(
        self,
        batch: BatchT,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        """Run the encoder.

        Args:
            batch: output of `collate`, on the student's device.
            perturbation: added to the inputs of a `Perturbable` student; None for the clean pass.
            mask_visual: hide the modalities from each other: no text state depends on the picture and no visual
                state on the text (the two summaries of the contrastive objective).
            need_relevance: also return `relevance_NL`, which may require a slower attention.
        """

    @abstractmethod
    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        """Return a new head for a kind of task: pooled (N, P) -> logits (N, num_classes), 1 class for choices."""

    def encode_pooled(
        self, batch: BatchT, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        """Return the part of `encode` that heads read, such as `pooled_NP` or `answered`; the rest may be missing."""
        return self.encode(batch, perturbation=perturbation, mask_visual=mask_visual)

    def encode_unimodal(self, batch: BatchT) -> StudentOutput:
        """Return text states that do not depend on the picture, and visual states that do not depend on the text.

        Shapes are those of `encode`; `pooled_NP` summarises only the text. A student with layers below its fusion
        returns their states. Other students run a pass that hides the modalities from each other.
        """
        return self.encode(batch, mask_visual=True)

    def visual_tokens(self, batch: BatchT) -> torch.Tensor:
        """Return the picture's tokens before fusion with the text, (N, R, H)."""
        return self.encode_unimodal(batch).visual_states_NRH

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Let passes inside share the states that `once` computes; none of the passes may be perturbed.

        A pass with gradients must precede a pass without. The passes share their dropout below the fusion.
        """
        self._shared = {}
        try:
            yield
        finally:
            self._shared = None

    def once(self, name: str, inputs: Sequence[torch.Tensor], compute: Callable[[], States]) -> States:
        """Run layers below the fusion; under `sharing`, reuse the states of equal inputs.

        Args:
            inputs: everything that the states depend on.
            compute: runs the layers.
        """
        if self._shared is None:
            return compute()
        kept = self._shared.setdefault(name, [])
        for known, states in kept:
            if all(old is new or torch.equal(old, new) for old, new in zip(known, inputs, strict=True)):
                return cast(States, states)
        kept.append((inputs, compute()))
        return cast(States, kept[-1][1])
