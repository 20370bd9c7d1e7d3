"""What the loss sees of the teachers. Whether it comes from a cache or a teacher that runs is invisible here.

Shapes: B examples, N sequences, S regions, R visual tokens of the student, W words, D teacher width (per teacher).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.nn import functional

from advl_pipeline.base.tensors import moved
from advl_pipeline.distillation.features import Features, Fillings
from advl_pipeline.distillation.settings import DistillationSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWidths:
    """Feature widths of one teacher, by modality; None where it has no such features."""

    image_global: int | None = None
    image_region: int | None = None
    text_global: int | None = None
    text_token: int | None = None


def teachers_by_pathway(settings: DistillationSettings, widths: Mapping[str, TeacherWidths]) -> dict[str, list[str]]:
    """Return the names of the teachers of each pathway, `vision` and `text`; none of one that a run leaves out."""
    by_pathway = {
        "vision": [name for name, of_teacher in widths.items() if of_teacher.image_global],
        "text": [name for name, of_teacher in widths.items() if of_teacher.text_global],
    }
    return {name: of_pathway if settings.pathway in ("both", name) else [] for name, of_pathway in by_pathway.items()}


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Which entries of a mask (N, W) are set, int64: their places n * W + w, and the rows that have any.

    They are found where a batch is collated. A device would make the host wait to be told how many there are.
    """

    place_X: torch.Tensor
    row_Y: torch.Tensor

    @classmethod
    def of_mask(cls, mask_NW: torch.Tensor) -> Nodes:
        """Return those of a mask."""
        return cls(
            place_X=torch.nonzero(mask_NW.flatten())[:, 0], row_Y=torch.nonzero(mask_NW.flatten(1).any(1))[:, 0]
        )

    def take(self, values_NWD: torch.Tensor) -> torch.Tensor:
        """Return (X, ...): the values of the entries."""
        return values_NWD.flatten(0, 1).index_select(0, self.place_X)

    def spread(self, each_X: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Undo `take`: (N, W), 0 elsewhere."""
        return each_X.new_zeros(shape.numel()).index_copy(0, self.place_X, each_X).view(shape)


@dataclass(frozen=True, kw_only=True)
class WordNodes:
    """The words with a meaning that both sides have states of, how many of them are spelled differently, and which of
    them a teacher places by landmarks."""

    meant: Nodes
    num_forms: int
    unplaced: Nodes


@dataclass(frozen=True, kw_only=True)
class VisionSignal:
    """One vision teacher on the pictures of a batch: features as they are stored, and targets that are made of them.

    Regions are boxes, or what the student's visual tokens stand for where the teacher gives a grid. `region_mask_BS`
    says which have a target. `shares_BSR` gives the share of each of the student's visual tokens in its state of a
    region, summing to 1, or to 0 for a region that it does not see; None: region s is its visual token s.
    `seen` are the regions that have a target and that the student sees; None: they are found when they are needed.
    """

    picture: Features
    regions: Features | None = None
    region_mask_BS: torch.Tensor | None = None
    shares_BSR: torch.Tensor | None = None
    seen: Nodes | None = None

    @cached_property
    def global_BD(self) -> torch.Tensor:
        """Targets of the pictures, (B, D) float32."""
        return self.picture.targets()

    @cached_property
    def regions_BSD(self) -> torch.Tensor | None:
        """Targets of the regions, (B, S, D) float32; None without regions."""
        return None if self.regions is None else self.regions.targets()

    def of_sequences(self, example_N: torch.Tensor) -> VisionSignal:
        """Return the rows of each sequence's example."""
        regions_BSD = self.regions_BSD
        return VisionSignal(
            picture=Features(values_MD=self.global_BD[example_N]),
            regions=None if regions_BSD is None else Features(values_MD=regions_BSD[example_N]),
            region_mask_BS=None if self.region_mask_BS is None else self.region_mask_BS[example_N],
            shares_BSR=None if self.shares_BSR is None else self.shares_BSR[example_N],
        )


@dataclass(frozen=True, kw_only=True)
class TextSignal:
    """One text teacher on the sequences of a batch: features as they are stored, and targets that are made of them.

    `fillings` are features of words without rows. `picture` (N rows) is what words are compared with, of an aligned
    pair of towers. `nodes` are the words that are compared; None: they are found when they are needed.
    """

    text: Features
    words: Features | None = None
    fillings: Fillings | None = None
    word_mask_NW: torch.Tensor | None = None
    nodes: WordNodes | None = None
    picture: Features | None = None

    @cached_property
    def global_ND(self) -> torch.Tensor:
        """Targets of the texts, (N, D) float32."""
        return self.text.targets()

    @cached_property
    def _of_words(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.words is None:
            return None, None
        raw_NWD = self.words.averaged()
        if self.fillings is not None and len(self.fillings.place_F):
            raw_NWD.flatten(0, 1).index_copy_(0, self.fillings.place_F, self.fillings.mean_FD)
        words_NWD, relevance_NW = self.words.standardised(raw_NWD), None
        if self.picture is not None:
            picture_N1D = self.picture.averaged()[:, None, :]
            relevance_NW = functional.cosine_similarity(raw_NWD, picture_N1D, dim=-1)
        return words_NWD, relevance_NW

    @property
    def words_NWD(self) -> torch.Tensor | None:
        """Targets of the words, (N, W, D) float32; None without features of words."""
        return self._of_words[0]

    @property
    def relevance_NW(self) -> torch.Tensor | None:
        """The cosine of each word and the picture in an aligned pair of towers; None otherwise."""
        return self._of_words[1]


@dataclass(frozen=True, kw_only=True)
class WordAlignment:
    """The words of each sequence: the word of each student token, the prior, and which words exist.

    `form_NW` (int64) is equal where two words are spelled alike. `known_NW` (float32, 0 to 1) says how well the
    student's pretraining knew a word; without a record of it every word counts as known.
    `frequent_NW` (bool) marks words of very many texts, which say nothing of one of them.
    """

    word_of_token_NL: torch.Tensor
    prior_NW: torch.Tensor
    word_mask_NW: torch.Tensor
    form_NW: torch.Tensor
    known_NW: torch.Tensor
    frequent_NW: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class TeacherSignal:
    """All teachers on one batch, by teacher name, and their confidence in the ground truth (B,) by modality."""

    vision: Mapping[str, VisionSignal] = field(default_factory=dict)
    text: Mapping[str, TextSignal] = field(default_factory=dict)
    words: WordAlignment | None = None
    confidence: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> TeacherSignal:
        """Return the signal on a device, where targets are made of the features at once."""
        there = moved(self, device)
        for vision in there.vision.values():
            _ = vision.global_BD, vision.regions_BSD
        for text in there.text.values():
            _ = text.global_ND, text.words_NWD
        return there


def shared_words(words: WordAlignment, part: TextSignal, seen_NW: torch.Tensor) -> torch.Tensor:
    """Return (N, W) bool: the words that both the student, which has `seen_NW`, and the teacher have states of."""
    shared_NW = words.word_mask_NW & seen_NW
    return shared_NW if part.word_mask_NW is None else shared_NW & part.word_mask_NW
