"""Which pixels a box stands for, and box features from the grid of a whole picture.

Shapes: R boxes of one picture, 4 = (x1, y1, x2, y2), h x w cells, D feature width.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

CONTEXT_MARGIN = 1 / 16
"""Context kept around a box, as a share of its longer edge, on every side."""


def crop_rectangle(
    box_4: npt.NDArray[np.float32], width: int, height: int, *, margin: float = CONTEXT_MARGIN
) -> tuple[int, int, int, int]:
    """Return the rectangle (x1, y1, x2, y2), in whole pixels, that is cut out for a box.

    The box grown by the margin, rounded outwards, clipped to the picture; never empty: a box without area, or
    one outside the picture, gives the nearest pixel of the picture.

    Args:
        box_4: (x1, y1, x2, y2) in pixels, float32, corners in any order.
        width, height: size of the picture in pixels.
        margin: share of the box's longer edge added on every side.
    """
    x1, x2 = sorted((float(box_4[0]), float(box_4[2])))
    y1, y2 = sorted((float(box_4[1]), float(box_4[3])))
    grow = margin * max(x2 - x1, y2 - y1)
    left, right = _clip_edge(x1 - grow, x2 + grow, width)
    top, bottom = _clip_edge(y1 - grow, y2 + grow, height)
    return left, top, right, bottom


def relative_boxes(boxes_R4: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float32]:
    """Return boxes as shares of the picture's edges, clipped to [0, 1], corners in order; (R, 4) float32."""
    boxes_R22 = (boxes_R4.reshape(-1, 2, 2) / np.array([width, height], dtype=np.float32)).clip(0.0, 1.0)
    return np.concatenate([boxes_R22.min(axis=1), boxes_R22.max(axis=1)], axis=1).astype(np.float32)


def _clip_edge(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(max(math.floor(low), 0), size - 1)
    stop = max(min(math.ceil(high), size), start + 1)
    return start, stop


SAMPLES_PER_CELL_EDGE = 2
"""Bilinear samples along each edge of each of the 7 x 7 bins that a box is divided into."""

BINS = 7
"""Bins along each edge of a box, as in Mask R-CNN's RoIAlign (arXiv:1703.06870)."""


def roi_align_mean(grid_hwD: torch.Tensor, boxes_R4: torch.Tensor) -> torch.Tensor:
    """Return the RoI-aligned mean feature of each box; (R, D) float32.

    Args:
        grid_hwD: cells of one picture.
        boxes_R4: (x1, y1, x2, y2) as shares of the picture's width and height, float32 in [0, 1].
    """
    from torchvision.ops import roi_align

    rows, columns, width = grid_hwD.shape
    if not len(boxes_R4):
        return grid_hwD.new_zeros((0, width))
    map_1Dhw = grid_hwD.permute(2, 0, 1)[None]
    scaled_R4 = boxes_R4 * boxes_R4.new_tensor([columns, rows, columns, rows])
    pooled_RDbb: torch.Tensor = roi_align(
        map_1Dhw, [scaled_R4], BINS, sampling_ratio=SAMPLES_PER_CELL_EDGE, aligned=True
    )
    return pooled_RDbb.mean(dim=(2, 3))
