"""Box features from the grid of a whole picture. Shapes: h x w cells, D feature width, R boxes."""

from __future__ import annotations

import torch

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
