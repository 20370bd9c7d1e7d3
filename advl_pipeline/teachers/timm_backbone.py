"""Vision networks of timm as frozen teachers. Shapes: N pictures, C = 3, H x W pixels, D width, h x w cells."""

from __future__ import annotations

import math

import torch
from torch import nn

from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.teachers.pixels import PixelSettings
from advl_pipeline.teachers.vision_backbone import ImageFeatures, VisionBackbone, cells_from_tokens


class TimmBackbone(VisionBackbone):
    """A timm model with its own preprocessing.

    The global feature is what its classifier sees (`forward_head(pre_logits=True)`); the grid is its last feature
    map without class and register tokens; logits come from its classifier where it has one.
    """

    def __init__(self, model: nn.Module, *, architecture: str, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(
            model,
            settings=timm_pixel_settings(model),
            description={
                "library": "timm",
                "architecture": architecture,
                "global": "input of the classifier",
                "grid": "last feature map",
            },
            device=device,
            dtype=dtype,
            folds_batch_norms=True,
        )

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        """Run the network on pixels of its dtype."""
        states = self.network.forward_features(pixels_NCHW)
        has_classifier = getattr(self.network, "num_classes", 0) > 1
        return ImageFeatures(
            global_ND=self.network.forward_head(states, pre_logits=True),
            grid_NhwD=self._cells(states),
            logits_NK=self.network.forward_head(states) if has_classifier else None,
        )

    def _cells(self, states: torch.Tensor) -> torch.Tensor:
        if states.ndim == 3:
            cells_NMD = states[:, getattr(self.network, "num_prefix_tokens", 0) :]
            if cells_NMD.shape[1] < 2:
                # pit's class token, which it does not call a prefix.
                raise ValueError("its last features are of the whole picture alone")
            return cells_from_tokens(cells_NMD)
        is_channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return states if is_channels_last else states.permute(0, 2, 3, 1)


def timm_pixel_settings(model: nn.Module) -> PixelSettings:
    """Return a timm model's evaluation preprocessing, from its own data configuration."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    _, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    squash = mode == "squash" and config["crop_pct"] == 1.0
    if mode != "center" and not squash:
        raise ConfigError(
            "This network's own preprocessing is not made here.",
            where="--teacher",
            why=f"its crop_mode is {mode}, crop_pct {config['crop_pct']:g}; made are center, and squash at 1",
            next_command=advise(["advl", "teachers", "list"], note="take weights of another training of the network"),
        )
    return PixelSettings(
        height=height,
        width=width,
        fit="squash" if squash else "crop",
        short_edge=0 if squash else math.floor(min(height, width) / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
