"""The rows of a teacher that are averaged for each target: of a word, a box, or a visual token of the student.

A grid is cached once, over the part of the picture that the teacher's preprocessing keeps. It is averaged by area to
the student's places.
Shapes: B examples, N sequences, S regions that have targets, R visual tokens of the student, W words, M stored rows,
P places of a target, X averaged rows, 4 = (x1, y1, x2, y2) in shares of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix

from advl_pipeline.base.geometry import Framing, grid_rectangles, pooling
from advl_pipeline.datasets.records import Example
from advl_pipeline.distillation.signal import Averages
from advl_pipeline.students.interface import PlaceKind, StudentBatch

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_POOLINGS_REMEMBERED = 512
"""Maximum number of averages that are kept; pictures of one size with the same student grid share theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherGrid:
    """The patches of a teacher's grid: `rows` x `columns` that divide what the teacher sees evenly."""

    rows: int
    columns: int
    framing: Framing

    @classmethod
    def of_description(cls, image: Mapping[str, Any]) -> TeacherGrid | None:
        """Read the grid from the image tower of a cache's identity; None if it does not describe one."""
        shape = image.get("tokens", {}).get("grid")
        if not shape or "pixels" not in image:
            return None
        return cls(rows=shape[0], columns=shape[1], framing=Framing.of_description(image["pixels"]))

    def patches(self, width: int, height: int) -> Array:
        """Return (rows * columns, 4): the positions of the patches in a picture of this size, row by row."""
        return grid_rectangles(self.rows, self.columns, self.framing.window(width, height))


RegionTargets = tuple[Averages, torch.Tensor, torch.Tensor | None]
"""The averages that give the targets of regions, and `region_mask_BS` and `shares_BSR` as in `VisionSignal`."""


def grid_targets(grid: TeacherGrid, examples: Sequence[Example], batch: StudentBatch) -> RegionTargets:
    """Average a teacher's patches to the student's visual tokens.

    Args:
        grid: its patches are the rows, one picture after another.
        batch: the student's batch, with places.
    """
    assert batch.places_BR4 is not None
    places_BR4 = batch.places_BR4.cpu().numpy()
    mask_BR = np.empty(places_BR4.shape[:2], np.bool_)
    weights: list[csr_matrix] = []
    for row, example in enumerate(examples):
        picture = example.image
        weights_RM, mask_BR[row] = _pooling(grid, places_BR4[row].tobytes(), picture.width, picture.height)
        weights.append(weights_RM)
    num_patches = grid.rows * grid.columns
    num_before = np.cumsum([0, *(matrix.nnz for matrix in weights)])
    averages = Averages(
        shape=mask_BR.shape,
        start_P1=_indices(
            np.concatenate([[0], *(matrix.indptr[1:] + num_before[row] for row, matrix in enumerate(weights))])
        ),
        row_X=_indices(np.concatenate([matrix.indices + row * num_patches for row, matrix in enumerate(weights)])),
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
    """Return the teacher's boxes as targets, and the student's tokens for each: its own, or the patches under it.

    Args:
        lengths_B: the number of boxes of each picture; their features are the rows, one picture after another.
        places: what the student's visual tokens represent.
    """
    num_regions, num_rows = int(lengths_B.max()), int(lengths_B.sum())
    has_row_BS = np.arange(num_regions) < lengths_B[:, None]
    averages = Averages(
        shape=has_row_BS.shape,
        start_P1=_indices(np.concatenate([[0], np.cumsum(has_row_BS)])),
        row_X=torch.arange(num_rows, dtype=torch.int32),
        weight_X=torch.ones(num_rows),
    )
    return averages, torch.from_numpy(has_row_BS), box_shares(examples, batch, places, num_regions)


def box_shares(
    examples: Sequence[Example], batch: StudentBatch, places: PlaceKind | None, num_boxes: int
) -> torch.Tensor:
    """Return (B, S, R), on the CPU: the share of each visual token in the student's state of each of S boxes.

    A box is represented by its own tokens or by the patches under it. Its shares sum to 1, or to 0 without any.
    """
    if places != "patches" or batch.places_BR4 is None:
        box_index_BR = batch.box_index_NR[batch.first_B].cpu()
        stands_BSR = box_index_BR[:, None] == torch.arange(num_boxes)[None, :, None]
        return stands_BSR / stands_BSR.sum(2, keepdim=True).clamp(min=1)
    shares_BSR = torch.zeros(len(examples), num_boxes, batch.places_BR4.shape[1])
    for row, (example, places_R4) in enumerate(zip(examples, batch.places_BR4.cpu().numpy(), strict=True)):
        edges = np.array([example.image.width, example.image.height] * 2, np.float32)
        shares_SR, _ = pooling(example.image.boxes_R4 / edges, places_R4)
        shares_BSR[row, : len(shares_SR)] = torch.from_numpy(shares_SR)
    return shares_BSR


def _indices(values_X: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
    return torch.from_numpy(values_X.astype(np.int32))


@lru_cache(maxsize=_POOLINGS_REMEMBERED)
def _pooling(grid: TeacherGrid, places: bytes, width: int, height: int) -> tuple[csr_matrix, Mask]:
    """Return (R, M) sparse weights, and (R,) bool: which places have a target."""
    places_R4 = np.frombuffer(places, np.float32).reshape(-1, 4)
    weights_RM, mask_R = pooling(places_R4, grid.patches(width, height))
    return csr_matrix(weights_RM), mask_R


def word_averages(
    word_M: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int32], shape: tuple[int, ...]
) -> tuple[Averages, torch.Tensor]:
    """Average the rows of each word, as `pool_to_words` does, for texts concatenated without padding.

    Args:
        word_M: the word of each row within its text, -1 for none.
        lengths_N: the number of rows of each text.
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
        # Each word's rows in order, as sequential summation would add them.
        row_X=torch.from_numpy(row_X[np.argsort(place_X, kind="stable")].astype(np.int32)),
        weight_X=torch.ones(len(row_X)),
        count_P=torch.from_numpy(np.maximum(count_P, 1).astype(np.float32)),
    )
    return averages, torch.from_numpy(count_P > 0).view(*shape)
