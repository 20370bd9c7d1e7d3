"""The vision tower: any network that maps pixels to features, with token features per box or per grid patch.

Shapes: N pictures, C = 3, H x W pixels, D feature width, h x w patches, M = h * w, T patches kept, R boxes of one
picture, 4 = (x1, y1, x2, y2), K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.geometry import grid_rectangles, pooling
from advl_pipeline.datasets.pictures import read_picture, read_square
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, Teacher
from advl_pipeline.teachers.open_options import PICTURES, ImageTokenKind
from advl_pipeline.teachers.vision_backbone import (
    VisionBackbone,
    crop_picture,
    fit_picture,
    normalise,
)

CONTEXT_MARGIN = 1 / 16
"""Context kept on every side of a box, as a fraction of its longer edge."""


def crop_rectangle(box_4: npt.NDArray[np.float32], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the crop rectangle (x1, y1, x2, y2) of a box, in integer pixels.

    The box is grown by the margin, rounded outwards and clipped to the picture. The result is never empty: a box
    without area or outside the picture gives the nearest pixel.

    Args:
        box_4: (x1, y1, x2, y2) in pixels, float32, corners in any order.
        width, height: size of the picture in pixels.
    """
    x1, x2 = sorted((float(box_4[0]), float(box_4[2])))
    y1, y2 = sorted((float(box_4[1]), float(box_4[3])))
    grow = CONTEXT_MARGIN * max(x2 - x1, y2 - y1)
    left, right = _clip_edge(x1 - grow, x2 + grow, width)
    top, bottom = _clip_edge(y1 - grow, y2 + grow, height)
    return left, top, right, bottom


def _clip_edge(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(max(math.floor(low), 0), size - 1)
    stop = max(min(math.ceil(high), size), start + 1)
    return start, stop


FORWARD_CHUNK = {"cpu": 8}
FORWARD_CHUNK_ELSEWHERE = 128
"""Maximum pictures in one forward pass, by device type: many box crops are encoded in chunks to bound memory.
Small chunks fit a CPU's caches: EfficientNet-Lite0 does 39.7 pictures/s on one core in chunks of 8, 25.1 of 64."""


class PixelImageTower:
    """An `ImageTower` that encodes pictures with any `VisionBackbone`.

    With image tokens `boxes`, the tokens of a unit are the global features of its box crops: each box, with
    1/16 of its longer edge of picture context on every side, on a square of the network's mean colour. The patches of
    `grid` cover the preprocessed picture, which is a central crop if `describe()["pixels"]["fit"]` is "crop". A grid
    with more than `grid_side` rows or columns is area-averaged down to that number.
    """

    def __init__(self, backbone: VisionBackbone, image_tokens: ImageTokenKind, grid_side: int | None = None) -> None:
        self.backbone = backbone
        self.image_tokens = image_tokens
        most = max(backbone.grid_shape) if grid_side is None else grid_side
        self.grid_shape = (min(most, backbone.grid_shape[0]), min(most, backbone.grid_shape[1]))
        weights_TM, _ = pooling(grid_rectangles(*self.grid_shape), grid_rectangles(*backbone.grid_shape))
        is_whole = self.grid_shape == backbone.grid_shape
        self._patches_TM = None if is_whole else torch.from_numpy(weights_TM).to(backbone.device)

    @property
    def global_dim(self) -> int:
        return self.backbone.global_dim

    @property
    def token_dim(self) -> int:
        return self.backbone.grid_dim if self.image_tokens == "grid" else self.backbone.global_dim

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the numbers (see `Tower.describe`)."""
        tokens: dict[str, Any] = {"kind": self.image_tokens}
        if self.image_tokens == "boxes":
            tokens |= {"margin": CONTEXT_MARGIN, "padding": "mean colour"}
        elif self.image_tokens == "grid":
            tokens |= {"grid": list(self.grid_shape)}
        return {
            **self.backbone.describe(),
            "pixels": {**self.backbone.settings.describe(), "alpha": "over white"},
            "tokens": tokens,
        }

    def num_tokens(self, unit: ImageUnit) -> int:
        """Return the number of token rows of a unit, without opening the picture."""
        if self.image_tokens == "grid":
            return self.grid_shape[0] * self.grid_shape[1]
        return 0 if self.image_tokens == "none" else len(unit.boxes_R4)

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        """Decode and scale a picture. `inputs["pixels"]`: uint8 (1, C, H, W), then one row per box.

        Raises:
            DatasetError: the picture cannot be read, or its size differs from the one its dataset states.
        """
        settings = self.backbone.settings
        picture = read_picture(unit)
        pixels = [fit_picture(picture, settings)]
        if self.image_tokens == "boxes":
            for box_4 in unit.boxes_R4:
                rectangle = crop_rectangle(box_4, unit.width, unit.height)
                pixels.append(crop_picture(picture, rectangle, settings))
        inputs = {"pixels": torch.stack(pixels)}
        return PreparedUnit(inputs=inputs, num_tokens=self.num_tokens(unit))

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode N pictures with all their box crops. Statistics: norm of the global feature; entropy (nats) and
        margin (difference of the two largest probabilities) if the network has a classifier."""
        counts = [len(unit.inputs["pixels"]) for unit in units]
        starts = list(itertools.accumulate(counts, initial=0))[:-1]
        chunk = FORWARD_CHUNK.get(self.backbone.device.type, FORWARD_CHUNK_ELSEWHERE)
        summaries: list[torch.Tensor] = []
        patches: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        with torch.inference_mode():
            for pixels_PCHW in torch.split(torch.cat([unit.inputs["pixels"] for unit in units]), chunk):
                on_device = pixels_PCHW.to(self.backbone.device, non_blocking=True)
                features = self.backbone(normalise(on_device, self.backbone.settings))
                summaries.append(features.global_ND.float())
                if self.image_tokens == "grid":
                    patches += self._patches(features.grid_NhwD)
                if features.logits_NK is not None:
                    logits.append(features.logits_NK.float())
            global_PD = torch.cat(summaries)
            global_ND = global_PD[starts]
            stats = {"norm": global_ND.norm(dim=1)}
            if logits:
                stats |= classifier_stats(torch.cat(logits)[starts])
            tokens = [
                patches[start] if self.image_tokens == "grid" else global_PD[start + 1 : start + 1 + unit.num_tokens]
                for unit, start in zip(units, starts, strict=True)
            ]
        return EncodedBatch(global_ND=global_ND, token_values=tokens, stats=stats)

    def _patches(self, grid_PhwD: torch.Tensor) -> list[torch.Tensor]:
        """Return the (T, D) patches of each picture."""
        patches_PMD = grid_PhwD.float().flatten(1, 2)
        if self._patches_TM is None:
            return list(patches_PMD)
        return [self._patches_TM @ patches_MD for patches_MD in patches_PMD]


def classifier_stats(logits_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the entropy (nats) and the top-two margin of a classifier's probabilities, each (N,) float32."""
    log_p_NK = logits_NK.log_softmax(dim=1)
    p_NK = log_p_NK.exp()
    top_N2 = p_NK.topk(2, dim=1).values
    return {"entropy": -(p_NK * log_p_NK).sum(dim=1), "margin": top_N2[:, 0] - top_N2[:, 1]}


MAX_SIZE = 4096
"""Maximum side in pixels."""


class SquarePictures:
    """An `ImageTower` without a network: token rows are uint8 pixels, the global feature is the mean colour."""

    global_dim = 3

    def __init__(self, size: int) -> None:
        self.token_dim = size

    def describe(self) -> dict[str, Any]:
        """Return everything that changes the pixels (see `Tower.describe`)."""
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
        """Return the rows of a picture, the same number for all."""
        return 3 * self.token_dim

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        """Decode and squeeze a picture. Raises `DatasetError` naming a picture that cannot be decoded."""
        planes_3SS = read_square(unit, self.token_dim).transpose(2, 0, 1)
        rows = np.ascontiguousarray(planes_3SS).reshape(-1, self.token_dim)
        colour_3 = rows.reshape(3, -1).sum(1, dtype=np.uint32) / np.float32(self.token_dim**2)
        inputs = {"pixels": torch.from_numpy(rows), "colour": torch.from_numpy(colour_3.astype(np.float32))}
        return PreparedUnit(inputs=inputs, num_tokens=len(rows))

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Return the pixels."""
        return EncodedBatch(
            global_ND=torch.stack([unit.inputs["colour"] for unit in units]),
            token_values=[unit.inputs["pixels"] for unit in units],
        )


def open_squares(size: str) -> Teacher:
    """Open pictures with a side length given as text.

    Raises:
        ConfigError: the text is not a number of pixels.
    """
    if not size.isdecimal() or not 0 < int(size) <= MAX_SIZE:
        raise ConfigError(
            f"The side of stored pictures is not a number from 1 to {MAX_SIZE}.",
            where="--teacher",
            why=f"got {size!r}",
        )
    return Teacher(name=f"{PICTURES}{int(size)}", image=SquarePictures(int(size)))
