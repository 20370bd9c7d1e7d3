"""Pictures as a chat model's processor reads them: what stands for one in a text, bytes for its encoder, and places.

Shapes: B pictures, U tiles or patches, F values of a patch, R picture tokens, 4 = (x1, y1, x2, y2) in shares of the
picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.geometry import WHOLE, Framing, grid_rectangles
from advl_pipeline.base.packages import read_tables
from advl_pipeline.datasets.pictures import read_rgb
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.students.pixel_student import normalise_colours

GRID = "image_grid_thw"
"""What processors of the Qwen-VL family and others call frames, rows and columns of a picture's patches."""

_TILE = re.compile(r"<[^<>]*row_(\d+)_col_(\d+)[^<>]*>")
"""Names a tile's place in the text that stands for a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    """What a type of transformers' chat models does otherwise than most; `data/chat_models.toml` says it by type.

    A type that is not proven is tried out before it is used.
    """

    patches: Literal["", "colours-first", "colours-last"] = ""
    both_ways: Literal["nothing", "picture", "question"] = "nothing"
    tiles: bool = False
    whole: Literal["", "first", "last"] = ""
    first_position: int = 0
    template: str = ""
    processor: str = "AutoProcessor"
    lora: Mapping[str, Any]
    is_proven: bool


def family_facts(model_type: str) -> FamilyFacts:
    """Return the facts of a type, the usual ones for a type that the table does not name."""
    table = read_tables("chat_models.toml")
    return FamilyFacts(**{**table["default"], **table.get(model_type, {})}, is_proven=model_type in table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture as a chat model reads it.

    `text` stands for it in a conversation. Each run of the picture's token is one token there, and `runs` says how
    many it is. `pixels` are for the vision encoder, uint8 where the device can normalise them; `inputs` is what else
    that takes. `places_R4` says where each token lies, NaN where that is not told.
    """

    text: str
    runs: tuple[int, ...]
    pixels: torch.Tensor
    places_R4: npt.NDArray[np.float32]
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.pixels, *self.inputs.values()))


def processed(processor: Any, shown: Image.Image, *, as_bytes: bool) -> Any:
    """Return what a processor makes of a picture and of the token that stands for it.

    Args:
        as_bytes: leave scaling of the values to the device, which is sent a quarter of the bytes.
    """
    return processor(
        text=[processor.image_token],
        images=[[shown]],
        return_tensors="pt",
        return_text_replacement_offsets=True,
        images_kwargs={"do_rescale": False, "do_normalize": False} if as_bytes else {},
    )


def keeps_bytes(processor: Any, facts: FamilyFacts) -> bool:
    """Whether it is known where the colours lie in what a processor makes of a picture, so that bytes can be sent."""
    pixels = processed(processor, Image.new("RGB", (64, 64)), as_bytes=True)["pixel_values"]
    return bool(facts.patches) or (pixels.dim() > 3 and pixels.shape[-3] == 3)


def read_picture(
    unit: ImageUnit, processor: Any, facts: FamilyFacts, *, image_token: str, wanted: Sequence[str], as_bytes: bool
) -> Picture:
    """Read a picture as a processor does.

    Args:
        image_token: in whose places the picture's features stand.
        wanted: names of what else than pixels the vision encoder takes.
        as_bytes: as `processed` takes it.

    Raises:
        DatasetError: the picture cannot be decoded, or the processor cannot cut it. ConfigError: it becomes tiles
            that the vocabulary does not name.
    """
    try:
        read = processed(processor, read_rgb(unit.path), as_bytes=as_bytes)
    except ValueError as error:
        what, why = "The picture cannot be cut into patches.", str(error).split("\n", maxsplit=1)[0]
        following = "--on-error skip, or crop the picture"
        raise DatasetError(what, where=str(unit.path), why=why, next_command=following) from None
    ((replaced,),) = read["text_replacement_offsets"]
    text: str = replaced["replacement"]
    _require_named_tiles(text, processor, unit)
    tokens = re.compile(f"(?:{re.escape(image_token)})+")
    runs = tuple(len(run) // len(image_token) for run in tokens.findall(text))
    pixels = read["pixel_values"]
    pixels = pixels.to(torch.uint8) if as_bytes else pixels
    return Picture(
        text=tokens.sub(lambda _: image_token, text),
        runs=runs,
        pixels=pixels.flatten(0, 1) if facts.tiles else pixels,
        places_R4=_places(read, text, runs, processor, facts, unit),
        inputs={name: read[name] for name in wanted if name in read and not facts.tiles},
    )


def _require_named_tiles(text: str, processor: Any, unit: ImageUnit) -> None:
    """Refuse a picture of more tiles than the vocabulary has names for."""
    vocabulary = processor.tokenizer.get_vocab()
    if all(name[0] in vocabulary for name in _TILE.finditer(text)):
        return
    most = max(int(name[1]) for name in map(_TILE.fullmatch, vocabulary) if name is not None)
    rows, columns = _tile_grid(text)
    edge = most * int(processor.image_processor.max_image_size["longest_edge"])
    raise ConfigError(
        f"A picture becomes {rows} x {columns} tiles; the model names {most} x {most}.",
        where=str(unit.path),
        next_command=f"--student-option longest_edge={edge}",
    )


def _tile_grid(text: str) -> tuple[int, int]:
    """Return rows and columns of the tiles that a text names, 0 where it names none."""
    tiles = [(0, 0), *((int(row), int(column)) for row, column in _TILE.findall(text))]
    return max(row for row, _ in tiles), max(column for _, column in tiles)


def _places(
    read: Mapping[str, Any], text: str, runs: Sequence[int], processor: Any, facts: FamilyFacts, unit: ImageUnit
) -> npt.NDArray[np.float32]:
    """Return (R, 4): where the tokens of a picture lie, NaN for those of which the processor does not tell it."""
    pictures = processor.image_processor
    if GRID in read:
        rows, columns = (int(size) // pictures.merge_size for size in read[GRID][0, 1:])
        return grid_rectangles(rows, columns)
    if "image_position_ids" in read:
        columns, rows = (
            int(last + 1) // pictures.pooling_kernel_size for last in read["image_position_ids"][0].amax(0)
        )
        return grid_rectangles(rows, columns)
    rows, columns = _tile_grid(text)
    if rows or len(runs) == 1:
        return np.concatenate(
            [*_tiled(rows, columns, runs), _whole(read, runs, rows * columns, processor, facts, unit)]
        )
    return np.full((sum(runs), 4), np.nan, dtype=np.float32)


def _tiled(rows: int, columns: int, runs: Sequence[int]) -> list[npt.NDArray[np.float32]]:
    """Return where the tokens of tiles lie, which cover a picture that is squeezed to fill them, each row by row."""
    side = math.isqrt(runs[0])
    grid = grid_rectangles(rows * side, columns * side).reshape(rows, side, columns, side, 4)
    return [grid.swapaxes(1, 2).reshape(-1, 4)] if rows else []


def _whole(
    read: Mapping[str, Any], runs: Sequence[int], num_tiles: int, processor: Any, facts: FamilyFacts, unit: ImageUnit
) -> npt.NDArray[np.float32]:
    """Return where the tokens lie that follow the named tiles and show the whole picture."""
    pictures = processor.image_processor
    number = sum(runs[num_tiles:])
    nowhere = np.full((number, 4), np.nan, dtype=np.float32)
    if "spatial_shapes" in read:
        rows, columns = (int(size) // pictures.downsample_factor for size in read["spatial_shapes"][-1])
        return grid_rectangles(rows, columns) if rows * columns == number else nowhere
    size = number
    if facts.whole:
        size = getattr(processor, "image_seq_length", None) or processor.num_image_tokens
    side = math.isqrt(size)
    if side * side != size:
        return nowhere
    first = number - size if facts.whole == "last" else 0
    nowhere[first : first + size] = grid_rectangles(side, side, _window(pictures, unit))
    return nowhere


def _window(pictures: Any, unit: ImageUnit) -> tuple[float, float, float, float]:
    """Return the rectangle of a picture that its processor shows: the centre where it crops, else all."""
    if not getattr(pictures, "do_center_crop", False):
        return WHOLE
    height, width = pictures.crop_size["height"], pictures.crop_size["width"]
    short_edge = pictures.size.get("shortest_edge") or 0
    framing = Framing(height=height, width=width, short_edge=short_edge, crop_rounding="down")
    return framing.window(unit.width, unit.height)


def normalised(pixels: torch.Tensor, pictures: Any, facts: FamilyFacts, dtype: torch.dtype) -> torch.Tensor:
    """Return pixel values as the processor of pictures scales them; those that are no bytes are scaled already."""
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype)
    values = pixels.to(dtype)
    if pictures.do_rescale:
        values = values * pictures.rescale_factor
    if not pictures.do_normalize:
        return values
    mean, std = pictures.image_mean, pictures.image_std
    if facts.patches == "colours-first":
        return normalise_colours(values.view(*values.shape[:-1], 3, -1), mean, std, axes_behind=1).flatten(-2)
    if facts.patches:
        return normalise_colours(values.view(*values.shape[:-1], -1, 3), mean, std, axes_behind=0).flatten(-2)
    return normalise_colours(values, mean, std, axes_behind=2)


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors one after the other, smaller ones padded with zeros, as processors pad what they batch."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - have for size, have in zip(sizes, tensor.shape[1:], strict=True)]
        padded.append(functional.pad(tensor, [end for number in reversed(missing) for end in (0, number)]))
    return torch.cat(padded)
