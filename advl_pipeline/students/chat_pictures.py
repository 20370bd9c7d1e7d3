"""Pictures for chat models, from the processor: placeholder text, bytes for the vision encoder, and token places.

Shapes: B pictures, U tiles or patches, F values of a patch, R picture tokens, 4 = (x1, y1, x2, y2) as fractions of
the picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.geometry import WHOLE, Framing, grid_rectangles
from advl_pipeline.datasets.pictures import read_picture
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.students.chat_config import FamilyFacts
from advl_pipeline.students.pixel_student import normalise_colours

GRID = "image_grid_thw"
"""Name of the frames, rows and columns of a picture's patches in processors of the Qwen-VL family and others."""

NO_PICTURE_TOKENS = "its processor does not tell where picture tokens stand"

_TILE = re.compile(r"<[^<>]*row_(\d+)_col_(\d+)[^<>]*>")
"""Name of a tile in a picture's placeholder text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture as input of a chat model.

    `text` is its placeholder in a conversation. Each run of the picture's token is collapsed to one token there, and
    `runs` contains their lengths. `pixels` are for the vision encoder, uint8 if the device can normalise them.
    `inputs` are the encoder's other inputs. `places_R4` are the boxes of tokens, NaN if unknown.
    """

    text: str
    runs: tuple[int, ...]
    pixels: torch.Tensor
    places_R4: npt.NDArray[np.float32]
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.pixels, *self.inputs.values()))


class PictureReader:
    """A picture reader with the results of a processor that normalises values on the device.

    Args:
        processor: a processor of transformers.
        facts: facts of the model's type.
        image_token_id: the placeholder token of a picture's features.
        wanted: names of the vision encoder's inputs besides pixels.
    """

    def __init__(self, processor: Any, facts: FamilyFacts, *, image_token_id: int, wanted: Sequence[str]) -> None:
        self._processor = processor
        self._pictures = processor.image_processor
        self._facts = facts
        self._image_token: str = processor.tokenizer.convert_ids_to_tokens(image_token_id)
        self._wanted = wanted

    def _processed(self, shown: Image.Image, *, as_bytes: bool) -> Any:
        """Return the processor's output for a picture and its placeholder token.

        Args:
            as_bytes: leave scaling to the device; this transfers a quarter of the bytes.
        """
        read = self._processor(
            text=[self._processor.image_token],
            images=[[shown]],
            return_tensors="pt",
            return_text_replacement_offsets=True,
            images_kwargs={"do_rescale": False, "do_normalize": False} if as_bytes else {},
        )
        if "text_replacement_offsets" not in read:
            kind = type(self._processor).__name__
            raise ConfigError(
                f"The {kind} cannot be used.",
                why=NO_PICTURE_TOKENS,
                next_command="choose one of the types in docs/students.md",
            )
        return read

    @cached_property
    def _as_bytes(self) -> bool:
        """Whether the position of the colour axis in the processor's output is known."""
        pixels = self._processed(Image.new("RGB", (64, 64)), as_bytes=True)["pixel_values"]
        return bool(self._facts.patches) or (pixels.dim() > 3 and pixels.shape[-3] == 3)

    def read(self, unit: ImageUnit) -> Picture:
        """Read a picture.

        Raises:
            DatasetError: the picture cannot be decoded, or the processor cannot split it. ConfigError: it has more
                tiles than the vocabulary has names for.
        """
        try:
            read = self._processed(read_picture(unit), as_bytes=self._as_bytes)
        except ValueError as error:
            raise DatasetError(
                "The picture cannot be cut into patches.",
                where=str(unit.path),
                why=str(error).split("\n", maxsplit=1)[0],
                next_command="crop the picture, or remove its rows",
            ) from None
        ((replaced,),) = read["text_replacement_offsets"]
        text: str = replaced["replacement"]
        self._require_named_tiles(text, unit)
        tokens = re.compile(f"(?:{re.escape(self._image_token)})+")
        runs = tuple(len(run) // len(self._image_token) for run in tokens.findall(text))
        pixels = read["pixel_values"]
        pixels = pixels.to(torch.uint8) if self._as_bytes else pixels
        in_tiles = self._facts.tiles
        return Picture(
            text=tokens.sub(lambda _: self._image_token, text),
            runs=runs,
            pixels=pixels.flatten(0, 1) if in_tiles else pixels,
            places_R4=self._places(read, text, runs, unit),
            inputs={name: read[name] for name in self._wanted if name in read and not in_tiles},
        )

    def _require_named_tiles(self, text: str, unit: ImageUnit) -> None:
        """Refuse a picture of more tiles than the vocabulary has names for."""
        vocabulary = self._processor.tokenizer.get_vocab()
        if all(name[0] in vocabulary for name in _TILE.finditer(text)):
            return
        most = max(int(name[1]) for name in map(_TILE.fullmatch, vocabulary) if name is not None)
        rows, columns = _tile_grid(text)
        edge = most * int(self._pictures.max_image_size["longest_edge"])
        raise ConfigError(
            f"A picture becomes {rows} x {columns} tiles; the model has tokens for at most {most} x {most}.",
            where=str(unit.path),
            next_command=f"train with --student-option longest_edge={edge}",
        )

    def _places(
        self, read: Mapping[str, Any], text: str, runs: Sequence[int], unit: ImageUnit
    ) -> npt.NDArray[np.float32]:
        """Return the boxes of a picture's tokens, (R, 4); NaN if the processor does not define them."""
        if GRID in read:
            rows, columns = (int(size) // self._pictures.merge_size for size in read[GRID][0, 1:])
            return grid_rectangles(rows, columns)
        if "image_position_ids" in read:
            columns, rows = (
                int(last + 1) // self._pictures.pooling_kernel_size for last in read["image_position_ids"][0].amax(0)
            )
            return grid_rectangles(rows, columns)
        if "image_sizes" in read and (merged := getattr(self._processor, "spatial_merge_size", 0)):
            side = self._processor.patch_size * merged
            rows, columns = (int(size) // side for size in read["image_sizes"][0])
            if rows * columns == sum(runs):
                return grid_rectangles(rows, columns)
        rows, columns = _tile_grid(text)
        if not rows and len(runs) != 1 and not self._facts.whole:
            return np.full((sum(runs), 4), np.nan, dtype=np.float32)
        whole_R4 = self._whole(read, sum(runs[rows * columns :]), unit)
        if not rows:
            return whole_R4
        # Tiles cover a picture that is resized to fill them; the tokens of each tile are in row-major order.
        edge = math.isqrt(runs[0])
        tiles = grid_rectangles(rows * edge, columns * edge).reshape(rows, edge, columns, edge, 4)
        return np.concatenate([tiles.swapaxes(1, 2).reshape(-1, 4), whole_R4])

    def _whole(self, read: Mapping[str, Any], number: int, unit: ImageUnit) -> npt.NDArray[np.float32]:
        """Return the boxes of the tokens after the named tiles, which show the whole picture.

        Args:
            number: number of these tokens.
        """
        nowhere = np.full((number, 4), np.nan, dtype=np.float32)
        if "spatial_shapes" in read:
            rows, columns = (int(size) // self._pictures.downsample_factor for size in read["spatial_shapes"][-1])
            return grid_rectangles(rows, columns) if rows * columns == number else nowhere
        size = self._tokens_of_tile(read) if self._facts.whole else number
        side = math.isqrt(size)
        if side * side != size:
            return nowhere
        first = number - size if self._facts.whole == "last" else 0
        # Tiles show all of the picture, whatever the processor does with a picture that it does not split.
        window = WHOLE if self._facts.whole else self._window(unit)
        nowhere[first : first + size] = grid_rectangles(side, side, window)
        return nowhere

    def _tokens_of_tile(self, read: Mapping[str, Any]) -> int:
        for name in ("image_seq_length", "num_image_tokens"):
            if number := getattr(self._processor, name, None):
                return int(number)
        side: int = read["pixel_values"].shape[-1] // self._processor.patch_size
        return side**2

    def _window(self, unit: ImageUnit) -> tuple[float, float, float, float]:
        """Return the rectangle of a picture that the processor keeps: the centre if it crops, else all."""
        if not getattr(self._pictures, "do_center_crop", False):
            return WHOLE
        height, width = self._pictures.crop_size["height"], self._pictures.crop_size["width"]
        short_edge = self._pictures.size.get("shortest_edge") or 0
        framing = Framing(height=height, width=width, short_edge=short_edge, crop_rounding="down")
        return framing.window(unit.width, unit.height)

    def normalised(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Normalise pixel values like the processor; values other than uint8 are normalised already."""
        values = pixels.to(dtype)
        if pixels.dtype != torch.uint8:
            return values
        if self._pictures.do_rescale:
            values = values * self._pictures.rescale_factor
        if not self._pictures.do_normalize:
            return values
        mean, std = self._pictures.image_mean, self._pictures.image_std
        if self._facts.patches == "colours-first":
            return normalise_colours(values.view(*values.shape[:-1], 3, -1), mean, std, axes_behind=1).flatten(-2)
        if self._facts.patches:
            return normalise_colours(values.view(*values.shape[:-1], -1, 3), mean, std, axes_behind=0).flatten(-2)
        return normalise_colours(values, mean, std, axes_behind=2)


def _tile_grid(text: str) -> tuple[int, int]:
    """Return the numbers of rows and columns of the tiles named in a text, 0 if there are none."""
    tiles = [(0, 0), *((int(row), int(column)) for row, column in _TILE.findall(text))]
    return max(row for row, _ in tiles), max(column for _, column in tiles)


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors, with smaller ones padded with zeros, as processors pad batches."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - have for size, have in zip(sizes, tensor.shape[1:], strict=True)]
        padded.append(functional.pad(tensor, [end for number in reversed(missing) for end in (0, number)]))
    return torch.cat(padded)
