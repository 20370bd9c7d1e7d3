"""Pictures as students over pixels see them, behind the face of a teacher, so that they are stored as features are.

Shapes: N pictures, S side in pixels; a picture has 3 S rows of S values, those of red, then of green, then of blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import ConfigError
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, Teacher
from advl_pipeline.teachers.open_options import PICTURES

MAX_SIZE = 4096
"""Largest side in pixels."""


class SquarePictures:
    """An `ImageTower` without a network: token rows are the pixels, uint8, the global feature is the mean colour."""

    global_dim = 3

    def __init__(self, size: int) -> None:
        self.token_dim = size

    def describe(self) -> dict[str, Any]:
        """Everything that changes the pixels (see `Tower.describe`)."""
        return {
            "picture": {
                "size": self.token_dim,
                "fit": "squeezed",
                "resampling": "bicubic",
                "colour": "RGB",
                "alpha": "over white",
            }
        }

    def num_tokens(self, unit: ImageUnit) -> int:
        """Rows of a picture, the same for all."""
        return 3 * self.token_dim

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        """Decode and squeeze; raises `DatasetError` naming a picture that cannot be decoded."""
        planes_3SS = read_square(unit.path, self.token_dim).transpose(2, 0, 1)
        rows = np.ascontiguousarray(planes_3SS).reshape(-1, self.token_dim)
        colour_3 = rows.reshape(3, -1).sum(1, dtype=np.uint32) / np.float32(self.token_dim**2)
        inputs = {"pixels": torch.from_numpy(rows), "colour": torch.from_numpy(colour_3.astype(np.float32))}
        return PreparedUnit(inputs=inputs, num_tokens=len(rows))

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Hand out the pixels."""
        return EncodedBatch(
            global_ND=torch.stack([unit.inputs["colour"] for unit in units]),
            token_values=[unit.inputs["pixels"] for unit in units],
        )


def open_squares(size: str) -> Teacher:
    """Open pictures of a side given as text.

    Raises:
        ConfigError: it is no number of pixels.
    """
    if not size.isdecimal() or not 0 < int(size) <= MAX_SIZE:
        raise ConfigError(
            f"The side of stored pictures is not a number from 1 to {MAX_SIZE}.",
            where="--teacher",
            why=f"got {size!r}",
        )
    return Teacher(name=f"{PICTURES}{int(size)}", image=SquarePictures(int(size)))
