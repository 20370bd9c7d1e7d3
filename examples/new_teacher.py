"""Add a teacher, check it and extract its features: python examples/new_teacher.py DATA_ROOT CACHE

The teacher encodes only the colours of a picture: the mean and standard deviation of each channel, over the picture
and over every patch. To make it a plug-in, register a function that returns such a `Teacher` as an entry point of
the group `advl.teachers`; then `--teacher colours` works in every command.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import advl_pipeline as advl

SETTINGS = advl.PixelSettings(
    height=64,
    width=64,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)


class Colours(advl.VisionBackbone):
    """Mean and standard deviation of each channel; the grid has 4 x 4 patches."""

    def features(self, pixels_NCHW: torch.Tensor) -> advl.ImageFeatures:
        """Return features (N, 6) of the picture and (N, 4, 4, 6) of its patches."""
        mean, square = (functional.adaptive_avg_pool2d(values, 4) for values in (pixels_NCHW, pixels_NCHW.square()))
        grid_NDhw = torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()], dim=1)
        return advl.ImageFeatures(global_ND=grid_NDhw.mean(dim=(2, 3)), grid_NhwD=grid_NDhw.permute(0, 2, 3, 1))


def open_colours(options: advl.OpenOptions) -> advl.Teacher:
    """Open the teacher, as its entry point would."""
    backbone = Colours(
        nn.Identity(),
        settings=SETTINGS,
        description={"architecture": "colours", "global": "mean of patches", "grid": "mean and spread by channel"},
        device=options.torch_device,
        dtype=options.torch_dtype,
    )
    return advl.Teacher(
        name=options.name, image=advl.PixelImageTower(backbone, options.image_tokens, options.grid_side)
    )


def main(data_root: Path, output: Path) -> None:
    """Extract features of the pictures of the built-in corpus."""
    teacher = open_colours(advl.OpenOptions(name="colours", image_tokens="boxes"))
    made = advl.extract(teacher=teacher, data="scenes-vcr", data_root=data_root, output=output, confidence_folds=2)
    print(f"{made.encoded_units} pictures encoded into {made.path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
