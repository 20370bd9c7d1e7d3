"""What a vision teacher says of the places that a student sees: of boxes, or of its grid averaged to other places.

The teacher's grid was cached once, of whatever part of the picture its own preprocessing shows it. At training time
it is averaged, by area, to the student's patches or to a detector's boxes.
Shapes: B examples, S regions that have targets, R visual tokens of the student, M token rows of a picture, D teacher
width, 4 = (x1, y1, x2, y2) in shares of the picture.
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

from advl_pipeline.datasets.records import Example
from advl_pipeline.geometry import Framing, grid_rectangles, pooling
from advl_pipeline.students.interface import PlaceKind, StudentBatch
from advl_pipeline.training.stored_signals import Averages

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


@dataclass(frozen=True, kw_only=True)
class RegionTargets:
    """What the targets of regions are averages of, and how the student sees these; masks as in `VisionSignal`."""

    averages: Averages
    region_mask_BS: torch.Tensor
    shares_BSR: torch.Tensor | None


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
    num_before = np.cumsum([0, *(one.nnz for one in weights)])
    averages = Averages(
        shape=mask_BR.shape,
        start_P1=_indices(
            np.concatenate([[0], *(one.indptr[1:] + num_before[row] for row, one in enumerate(weights))])
        ),
        row_X=_indices(np.concatenate([one.indices + row * num_cells for row, one in enumerate(weights)])),
        weight_X=torch.from_numpy(np.concatenate([one.data for one in weights])),
    )
    return RegionTargets(averages=averages, region_mask_BS=torch.from_numpy(mask_BR), shares_BSR=None)


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
    return RegionTargets(averages=averages, region_mask_BS=torch.from_numpy(has_row_BS), shares_BSR=shares_BSR)


def _indices(values_X: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
    return torch.from_numpy(values_X.astype(np.int32))


@lru_cache(maxsize=_POOLINGS_REMEMBERED)
def _pooling(grid: TeacherGrid, places: bytes, width: int, height: int) -> tuple[csr_matrix, Mask]:
    """Return (R, M) weights, few of them not 0, and (R,) bool: which places have a target."""
    places_R4 = np.frombuffer(places, np.float32).reshape(-1, 4)
    weights_RM, mask_R = pooling(places_R4, grid.cells(width, height))
    return csr_matrix(weights_RM), mask_R
