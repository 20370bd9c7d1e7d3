"""The teachers' signal as the loss sees it, whether it comes from a cache or a running teacher.

The features of a batch are transferred in their stored type, at half or a quarter of the width of targets. The
computing device widens them, averages them to words, boxes or patches, and standardises them. Collation determines
which rows are averaged.
Shapes: B examples, N sequences, S regions, R visual tokens of the student, W words, F words without rows, D teacher
width (per teacher), M stored rows, P places of a target, X averaged rows, each repeated as often as it counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from scipy.sparse import csr_matrix
from torch.nn import functional

from advl_pipeline.base.tensors import moved
from advl_pipeline.cache.quantise import dequantise, from_int8
from advl_pipeline.distillation.settings import DistillationSettings


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Weighted sums of rows for each place, divided by its count where counts are given; `shape` gives the places.

    Place p sums the rows `row_X[start_P1[p] : start_P1[p + 1]]`. Indices are int32, weights and counts float32.
    """

    shape: tuple[int, ...]
    start_P1: torch.Tensor
    row_X: torch.Tensor
    weight_X: torch.Tensor
    count_P: torch.Tensor | None = None

    def apply(self, rows_MD: torch.Tensor) -> torch.Tensor:
        """Return (*shape, D) float32; zeros where a place has no row."""
        num_places = prod(self.shape)
        if rows_MD.device.type == "cpu":
            indices = (self.row_X.numpy(), self.start_P1.numpy())
            weights_PM = csr_matrix((self.weight_X.numpy(), *indices), shape=(num_places, len(rows_MD)))
            sums_PD = torch.from_numpy(weights_PM @ rows_MD.numpy())
        else:
            # The same sums with operations that every device supports.
            place_X = torch.repeat_interleave(self.start_P1.diff(), output_size=len(self.row_X))
            weighted_XD = rows_MD.index_select(0, self.row_X) * self.weight_X[:, None]
            sums_PD = rows_MD.new_zeros(num_places, rows_MD.shape[1]).index_add_(0, place_X, weighted_XD)
        if self.count_P is not None:
            sums_PD /= self.count_P[:, None]
        return sums_PD.view(*self.shape, rows_MD.shape[1])


@dataclass(frozen=True, kw_only=True)
class Features:
    """Rows (M, D) as a cache stores them, with everything that targets are computed from.

    They are float16, float32, or int8 codes with their scales (M,). Targets are the `averages` of the rows, if given,
    standardised by a mean and variance (D,), if given.
    """

    values_MD: torch.Tensor
    scale_M: torch.Tensor | None = None
    averages: Averages | None = None
    mean_D: torch.Tensor | None = None
    variance_D: torch.Tensor | None = None

    def averaged(self) -> torch.Tensor:
        """Return (M, D) or (*shape, D) float32, not standardised."""
        if self.scale_M is None:
            rows_MD = self.values_MD.float()
        elif self.values_MD.device.type == "cpu":
            rows_MD = torch.from_numpy(from_int8(self.values_MD.numpy(), self.scale_M.numpy())).float()
        else:
            rows_MD = dequantise(self.values_MD, self.scale_M).float()
        return rows_MD if self.averages is None else self.averages.apply(rows_MD)

    def standardised(self, values_D: torch.Tensor) -> torch.Tensor:
        """Return (..., D), standardised like targets."""
        if self.mean_D is None or self.variance_D is None:
            return values_D
        return standardise(values_D, self.mean_D, self.variance_D)

    def targets(self) -> torch.Tensor:
        """Return the targets of the loss."""
        return self.standardised(self.averaged())


def standardise(values_D: torch.Tensor, mean_D: torch.Tensor, variance_D: torch.Tensor) -> torch.Tensor:
    """Scale each dimension of teacher features to mean 0 and variance 1 over the cache.

    Dimensions with no variance carry no information and become 0.
    """
    deviation = variance_D.clamp(min=0).sqrt()
    scale = torch.where(deviation > 1e-6, 1.0 / deviation.clamp(min=1e-6), torch.zeros_like(deviation))
    return (values_D.float() - mean_D).mul_(scale)


Widths = Mapping[str, int]
"""Widths of a teacher's features by kind: `image`, `region`, `summary` (of a text) and `word`; absent if missing."""


def teachers_by_pathway(settings: DistillationSettings, widths: Mapping[str, Widths]) -> dict[str, list[str]]:
    """Return the teacher names of each pathway, `vision` and `text`; empty for a pathway that a run leaves out."""
    by_pathway = {
        "vision": [name for name, of_teacher in widths.items() if "image" in of_teacher],
        "text": [name for name, of_teacher in widths.items() if "summary" in of_teacher],
    }
    return {name: of_pathway if settings.pathway in ("both", name) else [] for name, of_pathway in by_pathway.items()}


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The set entries of a mask (N, W), int64: their places n * W + w, and the rows that have any.

    Collation finds them, because on a device the host would have to wait for their number.
    """

    place_X: torch.Tensor
    row_Y: torch.Tensor

    @classmethod
    def of_mask(cls, mask_NW: torch.Tensor) -> Nodes:
        """Return the set entries of a mask."""
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
class VisionSignal:
    """One vision teacher's stored features of the pictures of a batch, and the targets computed from them.

    Regions are boxes or, if the teacher has a grid, the places of the student's visual tokens. `region_mask_BS` says
    which have a target. `shares_BSR` gives the share of each visual token in the student's state of a region. Shares
    sum to 1, or to 0 for a region that the student does not see; None: region s is visual token s.
    `seen` are the places of `shared_BS`; None: computed on demand.
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

    @property
    def shared_BS(self) -> torch.Tensor:
        """Whether a region has a target and the student sees it, (B, S) bool."""
        assert self.region_mask_BS is not None
        return self.region_mask_BS if self.shares_BSR is None else self.region_mask_BS & self.shares_BSR.any(2)

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
    """One text teacher's stored features of the sequences of a batch, and the targets computed from them.

    `fillings` are the places (F,), out of N * W, of words without rows, and their features (F, D) float32.
    `picture` (N rows) has the picture features to compare words with, if the two towers are aligned. `meant` are the
    words with a meaning that both sides have states of, spelled in `num_forms` ways. `unplaced` are those of them
    that a teacher places by landmarks; None: computed on demand.
    """

    text: Features
    words: Features | None = None
    fillings: tuple[torch.Tensor, torch.Tensor] | None = None
    word_mask_NW: torch.Tensor | None = None
    meant: Nodes | None = None
    unplaced: Nodes | None = None
    num_forms: int = 0
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
        if self.fillings is not None and len(self.fillings[0]):
            raw_NWD.flatten(0, 1).index_copy_(0, *self.fillings)
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
    """The words of each sequence: the word of each student token, the prior, and which words have a token.

    `form_NW` (int64) is equal where two words are spelled alike. `known_NW` (float32, 0 to 1) says how well the
    student's pretraining knew a word; if nothing says so, every word counts as known. `held_NW` (bool) marks words
    that count as known only because it is undecided. `frequent_NW` (bool) marks words that occur in very many texts
    and so do not characterise any.
    """

    word_of_token_NL: torch.Tensor
    prior_NW: torch.Tensor
    word_mask_NW: torch.Tensor
    form_NW: torch.Tensor
    known_NW: torch.Tensor
    held_NW: torch.Tensor
    frequent_NW: torch.Tensor

    def shared_with(self, part: TextSignal) -> torch.Tensor:
        """Return (N, W) bool: the words that both the student and the teacher have states of."""
        return self.word_mask_NW if part.word_mask_NW is None else self.word_mask_NW & part.word_mask_NW


@dataclass(frozen=True, kw_only=True)
class TeacherSignal:
    """All teachers' signals on a batch, by name, and their confidence in the ground truth (B,) by modality."""

    vision: Mapping[str, VisionSignal] = field(default_factory=dict)
    text: Mapping[str, TextSignal] = field(default_factory=dict)
    words: WordAlignment | None = None
    confidence: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> TeacherSignal:
        """Return the signal on a device, where targets are computed immediately."""
        there = moved(self, device)
        for vision in there.vision.values():
            _ = vision.global_BD, vision.regions_BSD
        for text in there.text.values():
            _ = text.global_ND, text.words_NWD
        return there
