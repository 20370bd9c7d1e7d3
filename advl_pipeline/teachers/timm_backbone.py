"""Vision networks of timm as frozen teachers.

Shapes: N pictures, C = 3, H x W pixels, D feature width, M grid cells, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from advl_pipeline.teachers.digest import parameter_digest
from advl_pipeline.teachers.image_tower import ImageFeatures
from advl_pipeline.teachers.pixels import PixelSettings


class TimmBackbone:
    """A timm model with its own preprocessing.

    The global feature is what its classifier sees (`forward_head(pre_logits=True)`); the grid is its last feature
    map without class and register tokens.
    """

    def __init__(self, model: nn.Module, *, architecture: str, device: torch.device, dtype: torch.dtype) -> None:
        self._description: dict[str, Any] = {
            "library": "timm",
            "architecture": architecture,
            "parameters": parameter_digest(model.state_dict()),
            "global": "input of the classifier",
            "grid": "last feature map",
            "compute_dtype": str(dtype).removeprefix("torch."),
        }
        self._settings = timm_pixel_settings(model)
        self._dtype = dtype
        self._device = device
        # Channels last is the layout that convolutions on CPUs and tensor cores are fastest in.
        network: Any = model
        self._model = network.eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)
        self._has_classifier = getattr(model, "num_classes", 0) > 1
        self._grid_shape = (0, 0)
        probe = self(torch.zeros(1, 3, self._settings.height, self._settings.width, device=device))
        if probe.grid_NMD is None:
            raise ValueError("unreachable: a timm network always gives a grid")
        self._global_dim = probe.global_ND.shape[1]
        self._grid_dim = probe.grid_NMD.shape[2]

    @property
    def settings(self) -> PixelSettings:
        return self._settings

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def global_dim(self) -> int:
        return self._global_dim

    @property
    def grid_dim(self) -> int:
        return self._grid_dim

    @property
    def grid_shape(self) -> tuple[int, int]:
        return self._grid_shape

    def describe(self) -> dict[str, Any]:
        return dict(self._description)

    @torch.inference_mode()
    def __call__(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        """Encode normalised float32 pixels."""
        inputs_NCHW = pixels_NCHW.to(dtype=self._dtype, memory_format=torch.channels_last)
        features = self._model.forward_features(inputs_NCHW)
        global_ND = self._model.forward_head(features, pre_logits=True)
        logits_NK = self._model.forward_head(features) if self._has_classifier else None
        return ImageFeatures(global_ND=global_ND, grid_NMD=self._cells(features), logits_NK=logits_NK)

    def _cells(self, features: torch.Tensor) -> torch.Tensor:
        """Return the grid as (N, M, D), and note its rows and columns, from whichever layout the network has."""
        if features.ndim == 3:
            cells_NMD = features[:, getattr(self._model, "num_prefix_tokens", 0) :]
            edge = math.isqrt(cells_NMD.shape[1])
            self._grid_shape = (edge, cells_NMD.shape[1] // edge)
            return cells_NMD
        if getattr(self._model, "output_fmt", "NCHW") == "NHWC":
            self._grid_shape = (features.shape[1], features.shape[2])
            return features.flatten(1, 2)
        self._grid_shape = (features.shape[2], features.shape[3])
        return features.flatten(2).transpose(1, 2)


def timm_pixel_settings(model: nn.Module) -> PixelSettings:
    """Return a timm model's evaluation preprocessing, from its own data configuration."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    _, height, width = config["input_size"]
    crop_mode = config.get("crop_mode") or "center"
    squash = crop_mode == "squash" and config["crop_pct"] == 1.0
    return PixelSettings(
        height=height,
        width=width,
        fit="squash" if squash else "crop",
        short_edge=0 if squash else math.floor(min(height, width) / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
