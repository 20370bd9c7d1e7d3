"""Teachers' features of a batch as caches store them, and what makes targets of them where the student computes.

What travels to a device is half as wide as targets are, or a quarter. There it is widened, averaged to words, boxes
or patches, and standardised. Which rows are averaged is settled before, with the batch: a grid was cached once, of
whatever part of the picture the teacher's preprocessing shows it, and is averaged by area to the student's places.
Shapes: B examples, N sequences, S regions that have targets, R visual tokens of the student, W words, M stored
rows, P places of a target, X rows that are averaged, each as often as it counts, D teacher width, 4 = (x1, y1, x2,
y2) in shares of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix

from advl_pipeline.cache.quantise import dequantise, from_int8
from advl_pipeline.datasets.records import Example
from advl_pipeline.distillation.signal import (
    Nodes,
    TeacherSignal,
    TextSignal,
    VisionSignal,
    WordAlignment,
    WordNodes,
    standardise,
)
from advl_pipeline.geometry import Framing, grid_rectangles, pooling
from advl_pipeline.students.interface import PlaceKind, StudentBatch


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

    def apply(self, rows_MD: torch.Tensor) -> torch.Tensor:
        """Return (*shape, D) float32; zeros where a place has no row."""
        num_places = prod(self.shape)
        if rows_MD.device.type == "cpu":
            indices = (self.row_X.numpy(), self.start_P1.numpy())
            weights_PM = csr_matrix((self.weight_X.numpy(), *indices), shape=(num_places, len(rows_MD)))
            sums_PD = torch.from_numpy(weights_PM @ rows_MD.numpy())
        else:
            # The same sums by what every device has.
            place_X = torch.repeat_interleave(self.start_P1.diff(), output_size=len(self.row_X))
            weighted_XD = rows_MD.index_select(0, self.row_X) * self.weight_X[:, None]
            sums_PD = rows_MD.new_zeros(num_places, rows_MD.shape[1]).index_add_(0, place_X, weighted_XD)
        if self.count_P is not None:
            sums_PD /= self.count_P[:, None]
        return sums_PD.view(*self.shape, rows_MD.shape[1])


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Rows (M, D) as a cache stores them, and what makes targets of them.

    They are float16, float32, or int8 codes with their scales (M,). Targets are `averages` of them, where given, and
    standardised by a mean and variance (D,), where given.
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
        """Return (..., D) as targets are."""
        if self.mean_D is None or self.variance_D is None:
            return values_D
        return standardise(values_D, self.mean_D, self.variance_D)

    def targets(self) -> torch.Tensor:
        """Return what the loss sees."""
        return self.standardised(self.averaged())


@dataclass(frozen=True, kw_only=True)
class Fillings:
    """Features (F, D), float32, of words without rows, and their places (F,) among all N * W."""

    place_F: torch.Tensor
    mean_FD: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class StoredVision:
    """One vision teacher on the pictures of a batch; masks and shares as in `VisionSignal`."""

    picture: StoredFeatures
    regions: StoredFeatures | None = None
    region_mask_BS: torch.Tensor | None = None
    shares_BSR: torch.Tensor | None = None
    seen: Nodes | None = None

    def targets(self) -> VisionSignal:
        """Return what the loss sees."""
        return VisionSignal(
            global_BD=self.picture.targets(),
            regions_BSD=None if self.regions is None else self.regions.targets(),
            region_mask_BS=self.region_mask_BS,
            shares_BSR=self.shares_BSR,
            seen=self.seen,
        )


@dataclass(frozen=True, kw_only=True)
class StoredText:
    """One text teacher on the sequences of a batch; `picture` where words are compared with the picture's feature."""

    text: StoredFeatures
    words: StoredFeatures | None = None
    fillings: Fillings | None = None
    word_mask_NW: torch.Tensor | None = None
    nodes: WordNodes | None = None
    picture: StoredFeatures | None = None

    def targets(self) -> TextSignal:
        """Return what the loss sees."""
        words_NWD = relevance_NW = None
        if self.words is not None:
            raw_NWD = self.words.averaged()
            if self.fillings is not None and len(self.fillings.place_F):
                raw_NWD.flatten(0, 1).index_copy_(0, self.fillings.place_F, self.fillings.mean_FD)
            words_NWD = self.words.standardised(raw_NWD)
            if self.picture is not None:
                picture_N1D = self.picture.averaged()[:, None, :]
                relevance_NW = torch.nn.functional.cosine_similarity(raw_NWD, picture_N1D, dim=-1)
        return TextSignal(
            global_ND=self.text.targets(),
            words_NWD=words_NWD,
            word_mask_NW=self.word_mask_NW,
            nodes=self.nodes,
            relevance_NW=relevance_NW,
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
            vision={name: part.targets() for name, part in self.vision.items()},
            text={name: part.targets() for name, part in self.text.items()},
            words=self.words,
            confidence=self.confidence,
        )


Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_POOLINGS_REMEMBERED = 512
"""How many averages are kept: pictures of one size that a student sees as one grid share theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherGrid:
    """The cells of a teacher's grid: `rows` x `columns` that divide what it is shown evenly."""

    rows: int
    columns: int
    framing: Framing

    @classmethod
    def of_description(cls, image: Mapping[str, Any]) -> TeacherGrid | None:
        """Read where the cells lie from the image tower of a cache's identity; None where it does not say."""
        shape = image.get("tokens", {}).get("grid")
        if not shape or "pixels" not in image:
            return None
        return cls(rows=shape[0], columns=shape[1], framing=Framing.of_description(image["pixels"]))

    def cells(self, width: int, height: int) -> Array:
        """Return (rows * columns, 4): where the cells lie in a picture of this size, row by row."""
        return grid_rectangles(self.rows, self.columns, self.framing.window(width, height))


RegionTargets = tuple[Averages, torch.Tensor, torch.Tensor | None]
"""What the targets of regions are averages of, and `region_mask_BS` and `shares_BSR` as in `VisionSignal`."""


def grid_targets(grid: TeacherGrid, examples: Sequence[Example], batch: StudentBatch) -> RegionTargets:
    """Average a teacher's cells to the student's visual tokens.

    Args:
        grid: its cells are the rows, one picture after another.
        batch: the student's, with places.
    """
    assert batch.places_BR4 is not None
    places_BR4 = batch.places_BR4.cpu().numpy()
    mask_BR = np.empty(places_BR4.shape[:2], np.bool_)
    weights: list[csr_matrix] = []
    for row, example in enumerate(examples):
        picture = example.image
        weights_RM, mask_BR[row] = _pooling(grid, places_BR4[row].tobytes(), picture.width, picture.height)
        weights.append(weights_RM)
    num_cells = grid.rows * grid.columns
    num_before = np.cumsum([0, *(matrix.nnz for matrix in weights)])
    averages = Averages(
        shape=mask_BR.shape,
        start_P1=_indices(
            np.concatenate([[0], *(matrix.indptr[1:] + num_before[row] for row, matrix in enumerate(weights))])
        ),
        row_X=_indices(np.concatenate([matrix.indices + row * num_cells for row, matrix in enumerate(weights)])),
        weight_X=torch.from_numpy(np.concatenate([matrix.data for matrix in weights])),
    )
    return averages, torch.from_numpy(mask_BR), None


def box_targets(
    lengths_B: npt.NDArray[np.int32],
    examples: Sequence[Example],
    batch: StudentBatch,
    *,
    places: PlaceKind | None,
) -> RegionTargets:
    """Return the teacher's boxes, and the student's tokens that stand for each or, of patches, that lie under it.

    Args:
        lengths_B: how many boxes each picture has, whose features are the rows, one picture after another.
        places: what the student's visual tokens are.
    """
    num_regions, num_rows = int(lengths_B.max()), int(lengths_B.sum())
    has_row_BS = np.arange(num_regions) < lengths_B[:, None]
    averages = Averages(
        shape=has_row_BS.shape,
        start_P1=_indices(np.concatenate([[0], np.cumsum(has_row_BS)])),
        row_X=torch.arange(num_rows, dtype=torch.int32),
        weight_X=torch.ones(num_rows),
    )
    if places == "patches" and batch.places_BR4 is not None:
        shares_BSR = torch.zeros(len(examples), num_regions, batch.places_BR4.shape[1])
        for row, (example, places_R4) in enumerate(zip(examples, batch.places_BR4.numpy(), strict=True)):
            edges = np.array([example.image.width, example.image.height] * 2, np.float32)
            shares_SR, _ = pooling(example.image.boxes_R4 / edges, places_R4)
            shares_BSR[row, : len(shares_SR)] = torch.from_numpy(shares_SR)
    else:
        first_B = torch.tensor((0, *batch.num_candidates[:-1])).cumsum(0)
        stands_BSR = batch.box_index_NR[first_B][:, None] == torch.arange(num_regions)[None, :, None]
        shares_BSR = stands_BSR / stands_BSR.sum(2, keepdim=True).clamp(min=1)
    return averages, torch.from_numpy(has_row_BS), shares_BSR


def _indices(values_X: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
    return torch.from_numpy(values_X.astype(np.int32))


@lru_cache(maxsize=_POOLINGS_REMEMBERED)
def _pooling(grid: TeacherGrid, places: bytes, width: int, height: int) -> tuple[csr_matrix, Mask]:
    """Return (R, M) weights, few of them not 0, and (R,) bool: which places have a target."""
    places_R4 = np.frombuffer(places, np.float32).reshape(-1, 4)
    weights_RM, mask_R = pooling(places_R4, grid.cells(width, height))
    return csr_matrix(weights_RM), mask_R


def word_averages(
    word_M: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int32], shape: tuple[int, ...]
) -> tuple[Averages, torch.Tensor]:
    """Average the rows of each word, as `pool_to_words` does, of texts that lie one after another without padding.

    Args:
        word_M: the word of its text that each row is of, -1 for none.
        lengths_N: how many rows each text has.
        shape: (N, W).

    Returns:
        The means, zeros where a word has no row, and (N, W) bool, whether it has one.
    """
    num_texts, num_words = shape
    row_X = np.flatnonzero(word_M >= 0)
    place_X = np.repeat(np.arange(num_texts), lengths_N)[row_X] * num_words + word_M[row_X]
    count_P = np.bincount(place_X, minlength=num_texts * num_words)
    averages = Averages(
        shape=shape,
        start_P1=torch.from_numpy(np.concatenate([[0], np.cumsum(count_P)]).astype(np.int32)),
        # A word's rows in their order, as they would be added up one by one.
        row_X=torch.from_numpy(row_X[np.argsort(place_X, kind="stable")].astype(np.int32)),
        weight_X=torch.ones(len(row_X)),
        count_P=torch.from_numpy(np.maximum(count_P, 1).astype(np.float32)),
    )
    return averages, torch.from_numpy(count_P > 0).view(*shape)
