"""The adapter that every student implements.

Shapes: B examples, N = sum of their candidates (sequences), L text tokens, R visual tokens, H width, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import numpy as np
import torch
from torch import nn

from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.tensors import moved
from advl_pipeline.datasets.records import Example
from advl_pipeline.students.checkpoints import KeyRules, LoadReport, load_file, rules_below
from advl_pipeline.students.presets import published_presets

States = TypeVar("States")
PlaceKind = Literal["patches", "regions"]
"""What visual tokens with a place are: cells of a regular grid over the picture, or regions of any place and size."""


@dataclass(kw_only=True)
class StudentBatch:
    """A padded batch of sequences, one per candidate.

    `token_ids_NL` (int64) are the tokens of the texts, `token_mask_NL` (bool) says which are no padding. So does
    `visual_mask_NR` (bool) of the visual tokens.
    `char_spans_NL2` (int64) gives the characters of `Candidate.text` that each token covers, (0, 0) for special
    tokens and padding. `box_index_NR` (int64) gives the row of `ImageUnit.boxes_R4` that each visual token stands
    for, -1 for whole-image tokens, grid cells and padding. `places_BR4` (float32) says where each visual token of an
    example's picture is: x1, y1, x2, y2 as shares of its width and height, NaN for a token that is nowhere (class
    tokens, the whole picture, padding); None where the student cannot say. Students subclass it to add their own
    tensors; `to` moves every tensor field.
    """

    picture_field: ClassVar[str] = ""
    """The tensor that holds what pictures show, apart from where their boxes are."""
    blank_value: ClassVar[int] = 0
    """What that tensor holds where a picture shows nothing."""

    num_candidates: tuple[int, ...]
    """Sequences of each of the B examples; they are next to one another."""
    example_N: torch.Tensor = field(default_factory=partial(torch.empty, 0, dtype=torch.int64))
    """The example of each sequence, int64; found from `num_candidates`."""
    first_B: torch.Tensor = field(default_factory=partial(torch.empty, 0, dtype=torch.int64))
    """The first sequence of each example, int64; found from `num_candidates`."""
    num_cut: int = 0
    """Texts that were cut to the student's length."""
    token_ids_NL: torch.Tensor
    token_mask_NL: torch.Tensor
    char_spans_NL2: torch.Tensor
    visual_mask_NR: torch.Tensor
    box_index_NR: torch.Tensor
    places_BR4: torch.Tensor | None = None

    def __post_init__(self) -> None:
        # Here and not where they are needed: on a device, a list becomes a tensor by waiting for it.
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
        """Return the batch with pictures that show nothing; boxes, tags and masks stay.

        Raises:
            ConfigError: the batch does not say which of its tensors holds the pictures.
        """
        if not self.picture_field:
            raise ConfigError(
                f"{type(self).__name__} does not say where its pictures are, so they cannot be blanked.",
                why="its class sets no picture_field",
                next_command="add --probe swapped --probe removed",
            )
        content = torch.full_like(getattr(self, self.picture_field), self.blank_value)
        return replace(self, **{self.picture_field: content})  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Answered:
    """Log-likelihoods (N, K) of answers in words, float32, and the tokens (N, K) that each is a sum over.

    K is 1 where each sequence holds its own answer, as candidates do. Answers that nobody asked about have no token.
    """

    log_likelihood_NK: torch.Tensor
    num_tokens_NK: torch.Tensor
    length_normalised: bool

    @property
    def scores(self) -> torch.Tensor:
        """What answers are compared by, (N, K); -inf for those that nobody asked about."""
        scores = self.log_likelihood_NK
        if self.length_normalised:
            scores = scores / self.num_tokens_NK.clamp(min=1)
        return scores.masked_fill(self.num_tokens_NK == 0, -torch.inf)


@dataclass(kw_only=True)
class StudentOutput:
    """What a student computes for a batch.

    `image_state_NH` is the student's whole-image token where it has one, else None (the mean of the visual states
    serves). `relevance_NL` is the attention mass from each text token to the visual tokens, detached, where the
    student can give it. `answered` is of a student that answers in words, where the batch holds answers: no head is
    asked then. `visual_layers` are visual states (N, R, H) at several depths, of a student that was told to give
    them. A student whose heads read more (`OutputHead`) subclasses it.
    """

    text_states_NLH: torch.Tensor
    visual_states_NRH: torch.Tensor
    pooled_NP: torch.Tensor
    image_state_NH: torch.Tensor | None = None
    relevance_NL: torch.Tensor | None = None
    answered: Answered | None = None
    visual_layers: tuple[torch.Tensor, ...] = ()

    def class_logits(self, head: nn.Module) -> torch.Tensor:
        """Return (N, K): a head's logits, or the scores of answers in words."""
        if self.answered is not None:
            return self.answered.scores
        logits: torch.Tensor = head(self if isinstance(head, OutputHead) else self.pooled_NP)
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Low-rank updates of a student: their rank, the scale alpha / rank, and the modules that get them, by name.

    Modules whose whole name the regular expression `excluded` matches get none.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    excluded: str = ""


@dataclass(kw_only=True)
class Perturbation:
    """Additive perturbations for adversarial training (VILLA): of the word embeddings, of the raw visual features."""

    text_NLE: torch.Tensor | None = None
    visual_NRF: torch.Tensor | None = None

    def of_words(self, words_NLE: torch.Tensor) -> torch.Tensor:
        """Return the word embeddings, perturbed."""
        return words_NLE if self.text_NLE is None else words_NLE + self.text_NLE

    def of_features(self, features_NRF: torch.Tensor) -> torch.Tensor:
        """Return the visual features, perturbed."""
        return features_NRF if self.visual_NRF is None else features_NRF + self.visual_NRF


class OutputHead(nn.Module, ABC):
    """A head that reads more of a student's output than its pooled state."""

    def read_texts(self, texts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Hear the texts of a split before training, token ids and mask (N, L) of each batch; ignored by default."""

    @abstractmethod
    def forward(self, output: StudentOutput) -> torch.Tensor:
        """Return (N, K)."""


class AnswerHead(nn.Module):
    """Stands in a head's place where answers are words; it has no parameters and is never asked."""

    def forward(self, pooled_NP: torch.Tensor) -> torch.Tensor:
        raise ValueError("a student that answers in words was given no answers to score")


class Student(nn.Module, ABC):
    """Encodes text and picture together, and builds a head for each task."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published_presets()
    """Name -> settings that differ from the defaults of the class' configuration."""
    name: str
    config: Any
    """Its settings, a dataclass."""
    hidden_size: int
    """Width H of text and visual states."""
    pooled_size: int
    """Width P of the pooled state; equal to H for most students."""
    lora: LoraSettings | None = None
    """How a run updates it where it starts from published weights; None: all of it is trained."""
    places: PlaceKind | None = None
    """What its visual tokens with a place are. None: batches do not say where tokens are (`places_BR4`), and no
    teacher's grid can be laid over them."""
    head_key: ClassVar[str] = ""
    """What the names of a task's head begin with in its published checkpoints, a regular expression."""
    towers: ClassVar[tuple[str, ...]] = ()
    """Teachers, by name, whose weights parts of it take over before it is trained (`take_towers`)."""

    _shared: dict[str, list[tuple[Sequence[torch.Tensor], Any]]] | None = None
    """What layers below the fusion gave, with the inputs that they gave it for."""

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Compute `once` what does not change between the passes inside, none of which is perturbed.

        A pass that takes gradients comes before one that takes none. They share their dropout below the fusion.
        """
        self._shared = {}
        try:
            yield
        finally:
            self._shared = None

    def once(self, name: str, inputs: Sequence[torch.Tensor], compute: Callable[[], States]) -> States:
        """Run layers below the fusion; passes under `sharing` take over what equal inputs gave before.

        Args:
            inputs: everything that their states depend on.
            compute: runs them.
        """
        if self._shared is None:
            return compute()
        kept = self._shared.setdefault(name, [])
        for known, states in kept:
            if all(old is new or torch.equal(old, new) for old, new in zip(known, inputs, strict=True)):
                return cast(States, states)
        kept.append((inputs, compute()))
        return cast(States, kept[-1][1])

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> StudentBatch:
        """Tokenise and pad; opens pictures or region features as the student needs them."""

    def with_answers(
        self, batch: StudentBatch, task: str, label_names: Sequence[str], wanted_BK: torch.Tensor | None = None
    ) -> StudentBatch:
        """Return the batch with the answers that a student which answers in words is to score; others need none.

        Args:
            batch: what `collate` returned, before it is moved.
            label_names: of the task's K classes or answers.
            wanted_BK: bool, the answers whose scores are needed, None for all.
        """
        return batch

    def announce(self, examples: Sequence[Example]) -> None:
        """Announce the next examples to collate, so that their features are read ahead; ignored by default."""

    def begin_epoch(self) -> None:
        """Announce that all examples are collated again; ignored by default."""

    def generate(self, batch: StudentBatch) -> list[str]:
        """Return the answer that a student which answers in words gives to each sequence of a batch without answers.

        Raises:
            ConfigError: the student does not answer in words.
        """
        raise ConfigError(
            f"{self.name} generates no text.",
            why="it scores the answers that it was trained on",
            next_command="leave out --generate",
        )

    def take_towers(self, networks: Sequence[nn.Module]) -> None:
        """Take over the weights of `towers`, whose networks these are; nothing to take by default."""

    def require_inputs(self) -> None:
        """Refuse a student that cannot read any example, before anything is written; nothing to refuse by default.

        Raises:
            ConfigError: what the student reads its inputs with does not fit it. WeightsUnavailable: it is missing.
        """

    def caveats(self) -> tuple[str, ...]:
        """Return what a reader of the student's numbers must know of its inputs; nothing by default."""
        return ()

    def load_published(self, path: Path) -> LoadReport:
        """Fill the student from a published checkpoint, file or folder; nothing is raised for keys that do not fit.

        Raises:
            ConfigError: nothing of it fits. WeightsUnavailable: it is not there or damaged.
        """
        return load_file(self, path, getattr(self, "rules", KeyRules()))

    def save_inputs(self, folder: Path) -> None:
        """Save next to the weights whatever else is needed to read examples elsewhere; nothing by default."""

    @property
    def max_text_length(self) -> int | None:
        """Tokens of one row of text, special ones among them; None for a student without such a limit."""
        return None

    def count_cut(self, examples: Sequence[Example]) -> int:
        """Return how many of the examples' texts `collate` would cut to `max_text_length`, without pictures.

        A student that never cuts a text returns 0, also where it would refuse one.
        """
        return 0

    def cut_texts(self) -> None:
        """Cut texts that are too long from now on, where they would be an error; nothing to change by default."""

    @abstractmethod
    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        """Run the encoder.

        Args:
            batch: what `collate` returned, on the student's device.
            perturbation: added to the inputs; None for the clean pass.
            mask_visual: hide the modalities from one another: no text state depends on the picture and no visual
                state on the text (the two summaries of the contrastive objective).
            need_relevance: also return `relevance_NL`, which may cost a slower attention.
        """

    def delta(self, perturbation: Perturbation | None) -> Perturbation:
        """Return what a pass adds to the student's inputs; raises as `require_perturbable`."""
        if perturbation is not None:
            self.require_perturbable()
        return perturbation or Perturbation()

    @property
    def is_perturbable(self) -> bool:
        """Whether something can be added to its inputs: it says of which shapes (`zero_perturbation`)."""
        return type(self).zero_perturbation is not Student.zero_perturbation

    def require_perturbable(self) -> None:
        """Refuse a student to whose inputs nothing can be added.

        Raises:
            ConfigError: its inputs are others than VILLA's.
        """
        if not self.is_perturbable:
            raise ConfigError(
                f"{self.name} takes no adversarial perturbations.",
                why="VILLA perturbs word embeddings and a detector's features, which are not this student's inputs",
                next_command="choose a region student, such as villa-base",
            )

    def zero_perturbation(self, batch: StudentBatch, *, text: bool = True, visual: bool = True) -> Perturbation:
        """Return zeros of the shapes of what `encode` adds to the words and to the visual features of a batch.

        Args:
            batch: on the student's device.
            text: whether words are perturbed, else None stands for them; `visual` likewise.
            visual: see `text`.
        """
        raise NotImplementedError(f"{self.name} was not asked by `require_perturbable`")

    def encode_pooled(
        self, batch: StudentBatch, *, perturbation: Perturbation | None = None, mask_visual: bool = False
    ) -> StudentOutput:
        """Return what heads read of `encode`, such as `pooled_NP` or `answered`; other states may be missing."""
        return self.encode(batch, perturbation=perturbation, mask_visual=mask_visual)

    def class_logits(self, head: nn.Module, batch: StudentBatch, *, mask_visual: bool = False) -> torch.Tensor:
        """Return what inference computes, (N, K): the head's logits, or the scores of answers in words."""
        return self.encode_pooled(batch, mask_visual=mask_visual).class_logits(head)

    def encode_unimodal(self, batch: StudentBatch) -> StudentOutput:
        """Return states of the text that have not seen the picture, and of the picture that have not seen the text.

        Shapes are those of `encode`; `pooled_NP` sums up the text alone. A student that has layers below its fusion
        returns their states; the others make a pass that hides the modalities from one another.
        """
        return self.encode(batch, mask_visual=True)

    def give_layers(self) -> None:
        """Give visual states at several depths from now on.

        Raises:
            ConfigError: the student has none.
        """
        raise ConfigError(
            f"{self.name} gives its image tokens at one depth, so no projector can be shared.",
            where="--projector shared",
            why="a chat model has them in every layer",
            next_command="--projector mlp, or a chat model such as smolvlm-256m",
        )

    def visual_tokens(self, batch: StudentBatch) -> torch.Tensor:
        """Return (N, R, H): the picture's tokens before they meet the text."""
        return self.encode_unimodal(batch).visual_states_NRH

    def text_tokens(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask of the examples' texts, (N, L), as `collate` does, without opening a picture.

        Raises:
            ConfigError: the student has no heads that ask for it.
        """
        raise ConfigError(f"{self.name} does not give its texts without their pictures.")

    @abstractmethod
    def build_head(self, task: str, num_classes: int) -> nn.Module:
        """Return a fresh head for a task: pooled (N, P) -> logits (N, num_classes); 1 class for multiple choice."""

    @classmethod
    def head_rules(cls, task: str) -> KeyRules | None:
        """Return the rules that take a task's head out of a published checkpoint; None where those have no heads."""
        return rules_below(cls.head_key) if cls.head_key else None

    def config_dict(self) -> dict[str, Any]:
        """Return the architecture as plain JSON types, enough to build the same student again."""
        return config_to_dict(self.config)
