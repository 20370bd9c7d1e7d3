"""Base classes of students over pixels: pictures are resized to a square; each patch is a token after a class token.

Resizing keeps every box in the picture and every batch rectangular. The original ViLT crops or pads instead.

Shapes: B examples, N sequences, L text tokens, R visual tokens (class token, then patches row by row), H width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.base.configuration import option
from advl_pipeline.base.geometry import grid_rectangles
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.students.picture_source import DecodedPictures
from advl_pipeline.students.text_student import TextBatch, TextStudent, TextStudentConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def normalise_colours(
    values: torch.Tensor, mean: Sequence[float], std: Sequence[float], *, axes_behind: int
) -> torch.Tensor:
    """Return (values - mean) / std per colour; `axes_behind` is the number of axes after the colour axis."""
    # Copying a list to the device would synchronise with it.
    means, stds = (
        torch.stack([values.new_full((), value) for value in numbers]).view(-1, *[1] * axes_behind)
        for numbers in (mean, std)
    )
    return (values - means) / stds


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelStudentConfig(TextStudentConfig):
    """Settings of every pixel student."""

    image_size: int = option(
        384, help="Side of the square picture in pixels; position tables are resized to it.", minimum=1
    )
    patch_size: int = option(32, help="Side of a patch in pixels.", minimum=1)


@dataclass(kw_only=True)
class PixelBatch(TextBatch):
    """A batch with `pixels_B3SS`, each example's picture (shared by its candidates), uint8 RGB."""

    picture_field: ClassVar[str] = "pixels_B3SS"
    blank_value: ClassVar[int] = 127

    pixels_B3SS: torch.Tensor
    are_alike: bool = False
    """Whether all pictures have the same name, and are therefore identical."""

    def without_picture(self) -> Self:
        """Return the batch with black pictures."""
        return dataclasses.replace(self, pixels_B3SS=torch.zeros_like(self.pixels_B3SS), are_alike=True)

    def blanked(self) -> Self:
        return dataclasses.replace(super().blanked(), are_alike=True)


class PixelStudent(TextStudent[PixelBatch]):
    """A student that collates texts and pictures; subclasses define the text rows and the encoder.

    `pictures` can be replaced after construction by a reader of stored pictures of the same size.
    """

    config: PixelStudentConfig
    places = "patches"
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD
    num_class_tokens: int = 1
    """Number of visual tokens before the patches."""

    def __init__(self, name: str, config: PixelStudentConfig) -> None:
        super().__init__(name, config)
        self.pictures = DecodedPictures(config.image_size)

    @property
    def num_visual(self) -> int:
        """Number R of visual tokens of every picture."""
        return self.num_class_tokens + (self.config.image_size // self.config.patch_size) ** 2

    def num_visual_of(self, unit: ImageUnit) -> int:
        return self.num_visual

    @property
    def token_places(self) -> npt.NDArray[np.float32]:
        """Box of each visual token, (R, 4); NaN for class tokens."""
        side = math.isqrt(self.num_visual - self.num_class_tokens)
        nowhere = np.full((self.num_class_tokens, 4), np.nan, np.float32)
        return np.concatenate([nowhere, grid_rectangles(side, side)])

    def collate(self, examples: Sequence[Example]) -> PixelBatch:
        text, num_cut = self.collate_texts(examples)
        num_sequences = len(text["token_ids_NL"])
        return PixelBatch(
            num_candidates=tuple(len(example.candidates) for example in examples),
            **text,
            visual_mask_NR=torch.ones(num_sequences, self.num_visual, dtype=torch.bool),
            box_index_NR=torch.full((num_sequences, self.num_visual), -1),
            places_BR4=torch.from_numpy(self.token_places).expand(len(examples), -1, -1),
            pixels_B3SS=self.pictures.pictures([example.image for example in examples]),
            whole_first=self.num_class_tokens > 0,
            are_alike=len({example.image.unit_id for example in examples}) == 1,
            num_cut=num_cut,
        )

    def announce(self, examples: Sequence[Example]) -> None:
        self.pictures.announce([example.image for example in examples])

    def begin_epoch(self) -> None:
        self.pictures.begin_epoch()

    def normalised(self, batch: PixelBatch) -> torch.Tensor:
        """Return the normalised pixels for the vision encoder, (B, 3, S, S)."""
        pixels = batch.pixels_B3SS.to(next(self.parameters()).dtype) / 255
        return normalise_colours(pixels, self.pixel_mean, self.pixel_std, axes_behind=2)

    def per_picture(
        self, batch: PixelBatch, compute: Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]
    ) -> Any:
        """Run the vision encoder on normalised pictures; under `sharing`, identical ones are encoded once.

        Args:
            compute: (B, 3, S, S) -> one or several tensors of B rows.
        """
        pixels_B3SS = batch.pixels_B3SS
        if self._shared is None or len(pixels_B3SS) < 2 or not batch.are_alike:
            return compute(self.normalised(batch))
        encoded = compute(self.normalised(dataclasses.replace(batch, pixels_B3SS=pixels_B3SS[:1])))
        rows = len(pixels_B3SS)
        if isinstance(encoded, torch.Tensor):
            return encoded.expand(rows, *encoded.shape[1:])
        return tuple(states.expand(rows, *states.shape[1:]) for states in encoded)
