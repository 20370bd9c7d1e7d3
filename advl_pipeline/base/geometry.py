"""Rectangles on a picture and their overlap. Pure functions.

A rectangle is (x1, y1, x2, y2) in fractions of the picture's width and height, so networks that scale or crop a
picture differently share one coordinate system. A row of NaN has no position, as for a class token.
Shapes: T target rectangles, S source rectangles, 4 = (x1, y1, x2, y2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
CropRounding = Literal["half-even", "down"]

WHOLE = (0.0, 0.0, 1.0, 1.0)

MIN_COVERED = 0.5
"""Minimum fraction of a target's area covered by sources for the target to count: a patch mostly outside a central
crop has no teacher signal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """The part of a picture that a network sees, as `height` x `width` pixels.

    If `short_edge` is 0, the entire picture is squashed; else the short edge is scaled to that many pixels and the
    centre is cropped. `crop_rounding` is the rounding of odd margins: half to even, or down.
    """

    height: int
    width: int
    short_edge: int = 0
    crop_rounding: CropRounding = "half-even"

    @classmethod
    def of_description(cls, pixels: Mapping[str, Any]) -> Framing:
        """Read the settings that `PixelSettings.describe` wrote into the identity of a cache."""
        height, width = pixels["size"]
        if pixels["fit"] == "squash":
            return cls(height=height, width=width)
        rounding = pixels["crop_rounding"]
        return cls(height=height, width=width, short_edge=pixels["short_edge"], crop_rounding=rounding)

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) in pixels of the scaled picture before cropping."""
        if not self.short_edge:
            return self.width, self.height
        short, long = sorted((width, height))
        long_scaled = int(self.short_edge * long / short)
        return (self.short_edge, long_scaled) if width <= height else (long_scaled, self.short_edge)

    def corner(self, scaled_size: tuple[int, int]) -> tuple[int, int]:
        """Return (left, top) in pixels of the crop in the scaled picture."""
        slack = (scaled_size[0] - self.width, scaled_size[1] - self.height)
        left, top = (round(edge / 2) if self.crop_rounding == "half-even" else math.floor(edge / 2) for edge in slack)
        return left, top

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the visible rectangle of a picture of this size; it exceeds the picture if the picture is padded."""
        scaled_width, scaled_height = scaled = self.scaled_size(width, height)
        left, top = self.corner(scaled)
        return (
            left / scaled_width,
            top / scaled_height,
            (left + self.width) / scaled_width,
            (top + self.height) / scaled_height,
        )


def grid_rectangles(rows: int, columns: int, window: tuple[float, float, float, float] = WHOLE) -> Array:
    """Return (rows * columns, 4) float32: the patches of a regular grid over a window of the picture, row by row."""
    x1, y1, x2, y2 = window
    x = np.linspace(x1, x2, columns + 1)
    y = np.linspace(y1, y2, rows + 1)
    top, left = (index.reshape(-1) for index in np.mgrid[:rows, :columns])
    return np.stack([x[left], y[top], x[left + 1], y[top + 1]], axis=1).astype(np.float32)


def overlap(target_T4: Array, source_S4: Array) -> Array:
    """Return (T, S) float32: the fraction of each target's area covered by each source.

    If the sources do not overlap each other, rows sum to at most 1. A target without area or position has a row of
    zeros.
    """
    shares = np.ones((len(target_T4), len(source_S4)), np.float32)
    for low, high in ((0, 2), (1, 3)):
        first_T1, last_T1 = target_T4[:, low, None], target_T4[:, high, None]
        common_TS = np.minimum(last_T1, source_S4[None, :, high]) - np.maximum(first_T1, source_S4[None, :, low])
        length_T1 = last_T1 - first_T1
        has_length_T1 = length_T1 > 0
        shares *= np.nan_to_num(common_TS).clip(min=0.0) * has_length_T1 / np.where(has_length_T1, length_T1, 1.0)
    return shares


def pooling(target_T4: Array, source_S4: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return the weights that average source features to targets.

    Returns:
        (T, S) float32, each row summing to 1, or to 0 for a target that does not count; and (T,) bool, whether the
        target counts: sources cover enough of it (`MIN_COVERED`).
    """
    shares_TS = overlap(target_T4, source_S4)
    covered_T: Array = shares_TS.sum(axis=1)
    counts_T = np.asarray(covered_T >= MIN_COVERED)
    weights_TS = shares_TS / np.where(counts_T, covered_T, np.float32(1.0))[:, None]
    weights_TS[~counts_T] = 0.0
    return weights_TS.astype(np.float32), counts_T
