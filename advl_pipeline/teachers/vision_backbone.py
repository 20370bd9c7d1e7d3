"""Base of every frozen vision network: device, dtype, preprocessing, and widths measured in one forward pass.

Batch norms are folded into the convolutions before them (`batch_norms.py`).

Shapes: N pictures, C = 3, H x W pixels, D feature width, h x w grid patches, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from advl_pipeline.base.batch_norms import fold_batch_norms
from advl_pipeline.base.geometry import Framing
from advl_pipeline.base.tensors import parameter_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFeatures:
    """Output of one forward pass: global (N, D), grid (N, h, w, D'), logits (N, K) or None."""

    global_ND: torch.Tensor
    grid_NhwD: torch.Tensor
    logits_NK: torch.Tensor | None = None


class VisionBackbone(ABC):
    """A frozen vision network on its device; its input is normalised pixels."""

    def __init__(
        self,
        network: nn.Module,
        *,
        settings: PixelSettings,
        description: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        folds_batch_norms: bool = False,
    ) -> None:
        """Freeze a network and move it to its device.

        Args:
            network: in float32 as loaded; the digest covers its parameters and buffers.
            description: library, architecture and selected features.
            device, dtype: of the computation.
            folds_batch_norms: fold batch norms into convolutions for speed; the network must return one tensor.
        """
        self.settings = settings
        self.device = device
        self._description = {
            **description,
            "parameters": parameter_digest(network.state_dict()),
            "compute_dtype": str(dtype).removeprefix("torch."),
        }
        self._dtype = dtype
        generator = torch.Generator().manual_seed(0)
        noise_1CHW = torch.rand(1, 3, settings.height, settings.width, generator=generator)
        folded = fold_batch_norms(network.eval(), noise_1CHW) if folds_batch_norms else network.eval()
        # Channels last is the fastest layout for convolutions on CPUs and tensor cores.
        frozen: Any = folded.requires_grad_(False)
        self.network: Any = frozen.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        probe = self(torch.zeros(1, 3, settings.height, settings.width, device=device))
        self.global_dim: int = probe.global_ND.shape[1]
        _, rows, columns, self.grid_dim = probe.grid_NhwD.shape
        self.grid_shape: tuple[int, int] = (rows, columns)

    def describe(self) -> dict[str, Any]:
        """Return the digest of the parameters, architecture, selected features and compute dtype."""
        return dict(self._description)

    @torch.inference_mode()
    def __call__(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        """Encode normalised float32 pixels on the backbone's device."""
        return self.features(pixels_NCHW.to(dtype=self._dtype, memory_format=torch.channels_last))

    @abstractmethod
    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        """Run the network on pixels in its dtype."""


def patches_from_tokens(tokens_NMD: torch.Tensor) -> torch.Tensor:
    """Reshape the patch tokens of a square picture to (N, h, w, D).

    Raises:
        ValueError: the number of tokens is not a square.
    """
    edge = round(tokens_NMD.shape[1] ** 0.5)
    if edge * edge != tokens_NMD.shape[1]:
        raise ValueError(f"{tokens_NMD.shape[1]} patch tokens do not form a square grid")
    return tokens_NMD.reshape(len(tokens_NMD), edge, edge, -1)


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSettings(Framing):
    """The preprocessing of a network: framing, size in pixels, interpolation and normalisation.

    For odd margins timm rounds half to even and transformers rounds down. `mean` and `std` are per channel for
    intensities in [0, 1].
    """

    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def resample(self) -> Image.Resampling:
        """The Pillow filter for `interpolation`."""
        return Image.Resampling[self.interpolation.upper()]

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, for an identity."""
        described: dict[str, Any] = {
            "size": [self.height, self.width],
            "fit": "crop" if self.short_edge else "squash",
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.short_edge:
            described |= {"short_edge": self.short_edge, "crop_rounding": self.crop_rounding}
        return described

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The network's mean as 8-bit RGB: the padding colour, zero after normalisation."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue


def fit_picture(picture: Image.Image, settings: PixelSettings) -> torch.Tensor:
    """Scale an RGB picture as the network's own preprocessing does; returns uint8 (3, H, W)."""
    size = settings.scaled_size(*picture.size)
    scaled = picture if picture.size == size else picture.resize(size, settings.resample)
    left, top = settings.corner(size)
    return _to_chw(scaled.crop((left, top, left + settings.width, top + settings.height)))


def crop_picture(picture: Image.Image, rectangle: tuple[int, int, int, int], settings: PixelSettings) -> torch.Tensor:
    """Crop (x1, y1, x2, y2) in pixels, centre it on a square of the mean colour, scale; returns uint8 (3, H, W)."""
    cut = picture.crop(rectangle)
    side = max(cut.size)
    if cut.size != (side, side):
        square = Image.new("RGB", (side, side), settings.mean_colour)
        square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
        cut = square
    return _to_chw(cut.resize((settings.width, settings.height), settings.resample))


def normalise(pixels_NCHW: torch.Tensor, settings: PixelSettings) -> torch.Tensor:
    """Turn uint8 pixels into the network's float32 input on the same device."""
    device = pixels_NCHW.device
    mean_C11 = torch.tensor(settings.mean, device=device).view(3, 1, 1)
    std_C11 = torch.tensor(settings.std, device=device).view(3, 1, 1)
    return pixels_NCHW.to(torch.float32).div_(255).sub_(mean_C11).div_(std_C11)


def _to_chw(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()
