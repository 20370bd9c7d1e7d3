"""Random zoom and shift of pictures and their boxes in pretraining.

A student over patches has to recognise a thing at any position (random scales and crops: Szegedy et al. 2015).

Shapes: B pictures, S side in pixels, R boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from advl_pipeline.base.geometry import WHOLE, overlap
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.students.picture_source import DecodedPictures

MIN_SEEN = 0.7
"""Minimum visible share of a box; boxes with less lose their tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Map from the moved picture to the original: position p shows `scale` * p + `shift`, by axis (x, y).

    Positions are in [-1, 1] from edge to edge, with 0 in the middle.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]

    def boxes(self, boxes_R4: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float32]:
        """Return (R, 4): the boxes in pixels of the moved picture; they may exceed its edges."""
        size_4 = np.array([width, height] * 2, np.float32)
        place_R4 = 2 * boxes_R4 / size_4 - 1
        moved_R4 = (place_R4 - np.array(self.shift * 2)) / np.array(self.scale * 2)
        in_pixels_R4: npt.NDArray[np.float32] = ((moved_R4 + 1) / 2 * size_4).astype(np.float32)
        return in_pixels_R4


@dataclass(frozen=True, kw_only=True, slots=True)
class MovedUnit(ImageUnit):
    """A picture to move; the boxes are those after the move, the file is the original."""

    move: Move


class MovedPictures(DecodedPictures):
    """Decoder that also moves `MovedUnit` pictures; pixels beyond an edge repeat the edge."""

    def pictures(self, units: Sequence[ImageUnit]) -> torch.Tensor:
        """Return (B, 3, S, S) uint8."""
        pixels_B3SS = super().pictures(units)
        theta_B23 = torch.zeros(len(units), 2, 3)
        for row, unit in enumerate(units):
            move = unit.move if isinstance(unit, MovedUnit) else Move(scale=(1.0, 1.0), shift=(0.0, 0.0))
            theta_B23[row] = torch.cat([torch.diag(torch.tensor(move.scale)), torch.tensor(move.shift)[:, None]], 1)
        grid_BSS2 = functional.affine_grid(theta_B23, list(pixels_B3SS.shape), align_corners=False)
        moved_B3SS = functional.grid_sample(
            pixels_B3SS.float(), grid_BSS2, padding_mode="border", align_corners=False
        )
        return moved_B3SS.round().to(torch.uint8)


def draw_moves(num_moves: int, strength: float, generator: torch.Generator) -> list[Move]:
    """Draw moves: a scale of up to 1 + strength or its inverse, a third of that per axis, a shift up to `strength`.

    Scales are log-uniform. A shift of 1 is half of the picture.
    """
    drawn_B5 = (2 * torch.rand(num_moves, 5, generator=generator) - 1).tolist()
    whole, by_axis = math.log1p(strength), math.log1p(strength / 3)
    return [
        Move(
            scale=(math.exp(size * whole + x * by_axis), math.exp(size * whole + y * by_axis)),
            shift=(right * strength, down * strength),
        )
        for size, x, y, right, down in drawn_B5
    ]


def moved_example(example: Example, move: Move) -> Example:
    """Return a caption with its picture moved, boxes clipped at the edges, and tags of invisible boxes removed.

    A picture that would lose all tagged boxes stays unchanged.
    """
    unit = example.image
    (caption,) = example.candidates
    boxes_R4 = move.boxes(unit.boxes_R4, unit.width, unit.height)
    size_4 = np.array([unit.width, unit.height] * 2, np.float32)
    cut_R4 = np.clip(boxes_R4, 0, size_4)
    is_seen_R = overlap(boxes_R4 / size_4, np.array([WHOLE], np.float32))[:, 0] >= MIN_SEEN
    tags = tuple(tag for tag in caption.tags if is_seen_R[tag.box])
    if not tags:
        return example
    kept = {item.name: getattr(unit, item.name) for item in fields(ImageUnit)}
    return replace(
        example,
        image=MovedUnit(**{**kept, "boxes_R4": cut_R4}, move=move),
        candidates=(replace(caption, tags=tags),),
    )
