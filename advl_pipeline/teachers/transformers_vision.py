"""Vision encoders of transformers as frozen teachers. Shapes: N pictures, C = 3, H x W pixels, M tokens, D width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from advl_pipeline.teachers.pixels import Interpolation, PixelSettings
from advl_pipeline.teachers.vision_backbone import ImageFeatures, VisionBackbone, cells_from_tokens

VisionKind = Literal["class token", "mean of cells", "pooled map"]
"""Where the global feature comes from: the class token after the last norm; the mean of the cells after the last
norm; the network's own pooling of its last map."""

VISION_TYPES: dict[str, VisionKind] = {
    "dinov2": "class token",
    "dinov2_with_registers": "class token",
    "dinov3_vit": "class token",
    "vit": "class token",
    "swin": "mean of cells",
    "swinv2": "mean of cells",
    "convnext": "pooled map",
    "convnextv2": "pooled map",
}
"""Supported model types."""


class TransformersVisionBackbone(VisionBackbone):
    """A vision transformer or convolutional network; the grid is its last map without class and register tokens."""

    def __init__(
        self,
        model: nn.Module,
        kind: VisionKind,
        *,
        num_prefix_tokens: int,
        settings: PixelSettings,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._kind = kind
        self._num_prefix_tokens = num_prefix_tokens
        super().__init__(
            model,
            settings=settings,
            description={
                "library": "transformers",
                "architecture": type(model).__name__,
                "global": kind,
                "grid": "last feature map",
            },
            device=device,
            dtype=dtype,
        )

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        """Run the network on pixels of its dtype."""
        output = self.network(pixel_values=pixels_NCHW)
        states = output.last_hidden_state
        if self._kind == "pooled map":
            return ImageFeatures(global_ND=output.pooler_output, grid_NhwD=states.permute(0, 2, 3, 1))
        cells_NMD = states[:, self._num_prefix_tokens :]
        global_ND = states[:, 0] if self._kind == "class token" else cells_NMD.mean(dim=1)
        return ImageFeatures(global_ND=global_ND, grid_NhwD=cells_from_tokens(cells_NMD))


def processor_pixel_settings(processor: object) -> PixelSettings:
    """Return the preprocessing that a transformers image processor does.

    Raises:
        ValueError: a kind of scaling that is not supported, such as a size that varies with the picture.
    """
    if abs(getattr(processor, "rescale_factor", 0.0) * 255 - 1) > 1e-6:
        raise ValueError("intensities are not scaled to [0, 1]")
    normalises = bool(getattr(processor, "do_normalize", False))
    height, width, short_edge = _scaling(processor)
    return PixelSettings(
        height=height,
        width=width,
        fit="crop" if short_edge else "squash",
        short_edge=short_edge,
        interpolation=_interpolation(getattr(processor, "resample", None)),
        mean=_per_channel(getattr(processor, "image_mean", None) if normalises else 0.0),
        std=_per_channel(getattr(processor, "image_std", None) if normalises else 1.0),
        crop_rounding="down",
    )


def _scaling(processor: object) -> tuple[int, int, int]:
    """Return height and width of the input, and the short edge before a central cut, 0 where nothing is cut."""
    size = dict(getattr(processor, "size", None) or {})
    cut = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    if "height" in size and not cut:
        return size["height"], size["width"], 0
    short_edge = int(size.get("shortest_edge", 0))
    if short_edge and "height" in cut:
        return cut["height"], cut["width"], short_edge
    crop_pct = getattr(processor, "crop_pct", None)
    if short_edge and crop_pct:
        # ConvNeXt's rule: large inputs are squashed, smaller ones scaled by the share that is kept, and cut.
        return short_edge, short_edge, 0 if short_edge >= 384 else int(short_edge / crop_pct)
    raise ValueError(f"size {size} with crop {cut} gives no fixed number of pixels")


def _per_channel(value: object) -> tuple[float, float, float]:
    if isinstance(value, (int, float)):
        return float(value), float(value), float(value)
    if isinstance(value, (list, tuple)) and len(value) == 3:
        red, green, blue = (float(part) for part in value)
        return red, green, blue
    raise ValueError(f"{value} is not one value per colour channel")


def _interpolation(resample: object) -> Interpolation:
    names: dict[object, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    code = getattr(resample, "value", resample)
    if code not in names:
        raise ValueError(f"resampling {resample} is not supported")
    return names[code]
