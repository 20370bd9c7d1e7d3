"""Teachers' features of a batch as caches store them, and what makes targets of them where the student computes.

What travels to a device is half as wide as targets are, or a quarter. There it is widened, averaged to words, boxes
or patches, and standardised. Which rows are averaged is settled before, with the batch.
Shapes: B examples, N sequences, S regions, R visual tokens, W words, M stored rows, P places of a target, X rows that
are averaged, each as often as it counts, D teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from scipy.sparse import csr_matrix

from advl_pipeline.cache.quantise import dequantise, from_int8
from advl_pipeline.distillation.signal import (
    Nodes,
    TeacherSignal,
    TextSignal,
    VisionSignal,
    WordAlignment,
    WordNodes,
    standardise,
)


@dataclass(frozen=True, kw_only=True)
class Averages:
    """What each place is the weighted sum of, divided by its count where counts are given; places lie in `shape`.

    Place p is of the rows `row_X[start_P1[p] : start_P1[p + 1]]`. Indices are int32, weights and counts float32.
    """

    shape: tuple[int, ...]
    start_P1: torch.Tensor
    row_X: torch.Tensor
    weight_X: torch.Tensor
    count_P: torch.Tensor | None = None

    def of(self, rows_MD: torch.Tensor) -> torch.Tensor:
        """Return (*shape, D) float32; zeros where a place has no row."""
        sums_PD = self._sparse_product(rows_MD) if rows_MD.device.type == "cpu" else self._summed_by_index(rows_MD)
        if self.count_P is not None:
            sums_PD /= self.count_P[:, None]
        return sums_PD.view(*self.shape, rows_MD.shape[1])

    def _sparse_product(self, rows_MD: torch.Tensor) -> torch.Tensor:
        weights_PM = csr_matrix(
            (self.weight_X.numpy(), self.row_X.numpy(), self.start_P1.numpy()),
            shape=(prod(self.shape), len(rows_MD)),
        )
        return torch.from_numpy(weights_PM @ rows_MD.numpy())

    def _summed_by_index(self, rows_MD: torch.Tensor) -> torch.Tensor:
        """Return the same sums (P, D) by what every device has."""
        place_X = torch.repeat_interleave(self.start_P1.diff(), output_size=len(self.row_X))
        weighted_XD = rows_MD.index_select(0, self.row_X) * self.weight_X[:, None]
        return rows_MD.new_zeros(prod(self.shape), rows_MD.shape[1]).index_add_(0, place_X, weighted_XD)


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Rows (M, D) as a cache stores them: float16, float32, or int8 codes with their scales (M,)."""

    values_MD: torch.Tensor
    scale_M: torch.Tensor | None = None

    def widened(self) -> torch.Tensor:
        """Return (M, D) float32."""
        if self.scale_M is None:
            return self.values_MD.float()
        if self.values_MD.device.type == "cpu":
            return torch.from_numpy(from_int8(self.values_MD.numpy(), self.scale_M.numpy())).float()
        return dequantise(self.values_MD, self.scale_M).float()


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and variance (D,) of a cache's features, by which targets are standardised."""

    mean_D: torch.Tensor
    variance_D: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Fillings:
    """Features (F, D), float32, of words without rows, and their places (F,) among all N * W."""

    place_F: torch.Tensor
    mean_FD: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class StoredVision:
    """One vision teacher on the pictures of a batch; masks and shares as in `VisionSignal`."""

    global_BD: StoredRows
    global_moments: Moments | None
    cells_MD: StoredRows | None = None
    averages: Averages | None = None
    moments: Moments | None = None
    region_mask_BS: torch.Tensor | None = None
    shares_BSR: torch.Tensor | None = None
    seen: Nodes | None = None

    def targets(self) -> VisionSignal:
        """Return what the loss sees."""
        regions_BSD = None
        if self.cells_MD is not None:
            assert self.averages is not None
            regions_BSD = _scaled(self.averages.of(self.cells_MD.widened()), self.moments)
        return VisionSignal(
            global_BD=_scaled(self.global_BD.widened(), self.global_moments),
            regions_BSD=regions_BSD,
            region_mask_BS=self.region_mask_BS,
            shares_BSR=self.shares_BSR,
            seen=self.seen,
        )


@dataclass(frozen=True, kw_only=True)
class StoredText:
    """One text teacher on the sequences of a batch; `picture_ND` where words are compared with the picture's."""

    global_ND: StoredRows
    global_moments: Moments | None
    tokens_MD: StoredRows | None = None
    averages: Averages | None = None
    fillings: Fillings | None = None
    moments: Moments | None = None
    word_mask_NW: torch.Tensor | None = None
    nodes: WordNodes | None = None
    picture_ND: StoredRows | None = None
    is_selected: bool = False

    def targets(self) -> TextSignal:
        """Return what the loss sees."""
        words_NWD = relevance_NW = None
        if self.tokens_MD is not None:
            assert self.averages is not None
            raw_NWD = self.averages.of(self.tokens_MD.widened())
            if self.fillings is not None and len(self.fillings.place_F):
                raw_NWD.flatten(0, 1).index_copy_(0, self.fillings.place_F, self.fillings.mean_FD)
            words_NWD = _scaled(raw_NWD, self.moments)
            if self.picture_ND is not None:
                picture_N1D = self.picture_ND.widened()[:, None, :]
                relevance_NW = torch.nn.functional.cosine_similarity(raw_NWD, picture_N1D, dim=-1)
        return TextSignal(
            global_ND=_scaled(self.global_ND.widened(), self.global_moments),
            words_NWD=words_NWD,
            word_mask_NW=self.word_mask_NW,
            nodes=self.nodes,
            relevance_NW=relevance_NW,
            is_selected=self.is_selected,
        )


@dataclass(frozen=True, kw_only=True)
class StoredSignal:
    """All teachers on one batch, as they are stored; fields as in `TeacherSignal`."""

    vision: Mapping[str, StoredVision] = field(default_factory=dict)
    text: Mapping[str, StoredText] = field(default_factory=dict)
    words: WordAlignment | None = None
    confidence: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def targets(self) -> TeacherSignal:
        """Return what the loss sees, on the device where the features lie."""
        return TeacherSignal(
            vision={name: one.targets() for name, one in self.vision.items()},
            text={name: one.targets() for name, one in self.text.items()},
            words=self.words,
            confidence=self.confidence,
        )


def _scaled(values: torch.Tensor, moments: Moments | None) -> torch.Tensor:
    return values if moments is None else standardise(values, moments.mean_D, moments.variance_D)
