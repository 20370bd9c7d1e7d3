"""The vision tower: any network that maps pixels to features, with token features per box or per grid cell.

Shapes: N pictures, C = 3, H x W pixels, D feature width, h x w grid cells, M = h * w, T cells that are kept, R boxes
of one picture, 4 = (x1, y1, x2, y2), K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import ConfigError
from advl_pipeline.geometry import grid_rectangles, pooling
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, Teacher
from advl_pipeline.teachers.open_options import PICTURES, ImageTokenKind
from advl_pipeline.teachers.vision_backbone import (
    VisionBackbone,
    crop_picture,
    fit_picture,
    normalise,
    read_picture,
    squash_picture,
)

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


FORWARD_CHUNK = {"cpu": 8}
FORWARD_CHUNK_ELSEWHERE = 128
"""Most pictures in one forward pass, by kind of device: crops of many boxes are encoded in pieces to bound memory.
Small pieces stay in a CPU's caches: EfficientNet-Lite0 does 39.7 pictures/s on one core by 8, and 25.1 by 64."""


class PixelImageTower:
    """An `ImageTower` over any `VisionBackbone`.

    With image tokens `boxes`, the tokens of a unit are the global features of its boxes' cut-outs: the box with
    1/16 of its longer edge around it as it is in the picture, on a square of the network's mean colour. With
    `boxes-roi` the whole picture, squashed so that nothing is cut off, is encoded once more for its grid, and each
    box is the RoI-aligned mean over it. The cells of `grid` lie on what the network's preprocessing shows it: a
    central crop where `describe()["pixels"]["fit"]` is "crop". A grid of more than `grid_side` rows or columns is
    averaged, by area, to so many.
    """

    def __init__(self, backbone: VisionBackbone, image_tokens: ImageTokenKind, grid_side: int | None = None) -> None:
        self.backbone = backbone
        self.image_tokens = image_tokens
        most = max(backbone.grid_shape) if grid_side is None else grid_side
        self.grid_shape = (min(most, backbone.grid_shape[0]), min(most, backbone.grid_shape[1]))
        weights_TM, _ = pooling(grid_rectangles(*self.grid_shape), grid_rectangles(*backbone.grid_shape))
        is_whole = self.grid_shape == backbone.grid_shape
        self._cells_TM = None if is_whole else torch.from_numpy(weights_TM).to(backbone.device)

    @property
    def global_dim(self) -> int:
        return self.backbone.global_dim

    @property
    def token_dim(self) -> int:
        return self.backbone.grid_dim if self.image_tokens in ("grid", "boxes-roi") else self.backbone.global_dim

    def describe(self) -> dict[str, Any]:
        """Everything that changes the numbers (see `Tower.describe`)."""
        tokens: dict[str, Any] = {"kind": self.image_tokens}
        if self.image_tokens == "boxes":
            tokens |= {"margin": CONTEXT_MARGIN, "padding": "mean colour"}
        elif self.image_tokens != "none":
            tokens |= {"grid": list(self.grid_shape if self.image_tokens == "grid" else self.backbone.grid_shape)}
        return {
            **self.backbone.describe(),
            "pixels": {**self.backbone.settings.describe(), "alpha": "over white"},
            "tokens": tokens,
        }

    def num_tokens(self, unit: ImageUnit) -> int:
        """Token rows of a unit, without opening the picture."""
        if self.image_tokens == "grid":
            return self.grid_shape[0] * self.grid_shape[1]
        return 0 if self.image_tokens == "none" else len(unit.boxes_R4)

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        """Decode and scale. `inputs["pixels"]`: uint8 (1, C, H, W), then one row per box or the squashed picture.

        Raises:
            DatasetError: the picture cannot be read or has another size than its dataset states.
        """
        settings = self.backbone.settings
        picture = read_picture(unit.path, width=unit.width, height=unit.height)
        pixels = [fit_picture(picture, settings)]
        inputs: dict[str, torch.Tensor] = {}
        if self.image_tokens == "boxes":
            for box_4 in unit.boxes_R4:
                rectangle = crop_rectangle(box_4, unit.width, unit.height)
                pixels.append(crop_picture(picture, rectangle, settings))
        elif self.image_tokens == "boxes-roi":
            pixels.append(squash_picture(picture, settings))
            boxes_R4 = relative_boxes(np.asarray(unit.boxes_R4, np.float32), unit.width, unit.height)
            inputs["boxes"] = torch.from_numpy(boxes_R4)
        inputs["pixels"] = torch.stack(pixels)
        return PreparedUnit(inputs=inputs, num_tokens=self.num_tokens(unit))

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode N pictures with all their cut-outs. Statistics: norm of the global feature; entropy (nats) and
        margin (difference of the two largest probabilities) where the network has a classifier."""
        counts = [len(unit.inputs["pixels"]) for unit in units]
        starts = list(itertools.accumulate(counts, initial=0))[:-1]
        chunk = FORWARD_CHUNK.get(self.backbone.device.type, FORWARD_CHUNK_ELSEWHERE)
        summaries: list[torch.Tensor] = []
        cells: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        with torch.inference_mode():
            for pixels_PCHW in torch.split(torch.cat([unit.inputs["pixels"] for unit in units]), chunk):
                on_device = pixels_PCHW.to(self.backbone.device, non_blocking=True)
                features = self.backbone(normalise(on_device, self.backbone.settings))
                summaries.append(features.global_ND.float())
                if self.image_tokens in ("grid", "boxes-roi"):
                    cells += self._cells(features.grid_NhwD)
                if features.logits_NK is not None:
                    logits.append(features.logits_NK.float())
            global_PD = torch.cat(summaries)
            global_ND = global_PD[starts]
            stats = {"norm": global_ND.norm(dim=1)}
            if logits:
                stats |= classifier_stats(torch.cat(logits)[starts])
            tokens = [self._tokens(global_PD, cells, unit, start) for unit, start in zip(units, starts, strict=True)]
        return EncodedBatch(global_ND=global_ND, token_values=tokens, stats=stats)

    def _tokens(
        self, global_PD: torch.Tensor, cells: Sequence[torch.Tensor], unit: PreparedUnit, start: int
    ) -> torch.Tensor:
        """Return the token rows of a unit whose pixels begin at row `start` of what the network gave."""
        if self.image_tokens in ("boxes", "none"):
            return global_PD[start + 1 : start + 1 + unit.num_tokens]
        if self.image_tokens == "grid":
            return cells[start]
        grid_hwD = cells[start + 1].view(*self.backbone.grid_shape, -1)
        return roi_align_mean(grid_hwD, unit.inputs["boxes"].to(grid_hwD.device))

    def _cells(self, grid_PhwD: torch.Tensor) -> list[torch.Tensor]:
        """Return the (T, D) cells of each picture; only those of a grid that is stored are averaged."""
        cells_PMD = grid_PhwD.float().flatten(1, 2)
        if self._cells_TM is None or self.image_tokens != "grid":
            return list(cells_PMD)
        return [self._cells_TM @ cells_MD for cells_MD in cells_PMD]


def classifier_stats(logits_NK: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the entropy (nats) and the top-two margin of a classifier's probabilities, each (N,) float32."""
    log_p_NK = logits_NK.log_softmax(dim=1)
    p_NK = log_p_NK.exp()
    top_N2 = p_NK.topk(2, dim=1).values
    return {"entropy": -(p_NK * log_p_NK).sum(dim=1), "margin": top_N2[:, 0] - top_N2[:, 1]}


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
