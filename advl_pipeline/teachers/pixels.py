"""From a picture on disk to the pixels that a vision network takes.

Pictures stay 8-bit until they are on the device of the network, where `normalise` does the rest: a quarter of
the memory, the same numbers. Shapes: N pictures, C = 3 channels (RGB), H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from advl_pipeline.datasets.pictures import read_rgb
from advl_pipeline.errors import DatasetError
from advl_pipeline.geometry import CropRounding, Framing

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["crop", "squash"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSettings:
    """How a network wants its pictures.

    `fit` "crop" scales the short edge to `short_edge` pixels and cuts the centre; "squash" scales both edges.
    `crop_rounding` says where an odd margin goes: torchvision (timm) rounds half to even, transformers rounds down.
    `mean` and `std` are per channel for intensities in [0, 1].
    """

    height: int
    width: int
    fit: Fit
    short_edge: int = 0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop_rounding: CropRounding = "half-even"

    @property
    def resample(self) -> Image.Resampling:
        """Pillow's filter of that name."""
        return Image.Resampling[self.interpolation.upper()]

    @property
    def framing(self) -> Framing:
        """Which part of a picture the network is shown."""
        return Framing.of_description(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, for an identity."""
        described: dict[str, Any] = {
            "size": [self.height, self.width],
            "fit": self.fit,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.fit == "crop":
            described |= {"short_edge": self.short_edge, "crop_rounding": self.crop_rounding}
        return described

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The network's mean as 8-bit RGB: what padding is filled with, zero after normalisation."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue


def read_picture(path: Path, *, width: int = 0, height: int = 0) -> Image.Image:
    """Decode a picture as `read_rgb` does, and check its size.

    Args:
        width, height: the size that the dataset states in pixels, checked when given.

    Raises:
        DatasetError: the file is missing, is no picture, is cut short, or has another size than stated.
    """
    picture = read_rgb(path)
    if width and height and picture.size != (width, height):
        raise DatasetError(
            "A picture does not have the size that its dataset states, so its boxes cannot be trusted.",
            where=str(path),
            why=f"stated {width} x {height} pixels, found {picture.width} x {picture.height}",
        )
    return picture


def fit_picture(picture: Image.Image, settings: PixelSettings) -> torch.Tensor:
    """Scale a whole RGB picture as the network's own preprocessing does; uint8 (3, H, W)."""
    framing = settings.framing
    size = framing.scaled_size(*picture.size)
    scaled = picture if picture.size == size else picture.resize(size, settings.resample)
    left, top = framing.corner(size)
    return _to_chw(scaled.crop((left, top, left + settings.width, top + settings.height)))


def squash_picture(picture: Image.Image, settings: PixelSettings) -> torch.Tensor:
    """Scale a whole RGB picture to the network's input with nothing cut off; uint8 (3, H, W)."""
    return _to_chw(picture.resize((settings.width, settings.height), settings.resample))


def crop_picture(picture: Image.Image, rectangle: tuple[int, int, int, int], settings: PixelSettings) -> torch.Tensor:
    """Cut (x1, y1, x2, y2) in pixels, centre it on a square of the mean colour, scale; uint8 (3, H, W)."""
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
