"""Qwen3-VL as a student, on transformers' modules: patches at the picture's resolution in a causal language model.

A picture is scaled so that its sides are multiples of a token's cell, and keeps its proportions nearly. Cells of four
patches become one token each, row by row. Features of inner layers of the vision encoder are added to the tokens'
states after the first layers of the language model (DeepStack). Positions have three axes: time, height, width.

Shapes: B pictures, U patches, F values of a patch, V tokens of all pictures, D features of a token, N sequences,
S tokens of a sequence, W tokens of an example's row, M picture tokens of all rows, R of one picture, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from advl_pipeline.configuration import option
from advl_pipeline.datasets.pictures import read_rgb
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.geometry import grid_rectangles
from advl_pipeline.students.chat import ChatBatch, Picture, embedded_chat_tokenizer, load_processor
from advl_pipeline.students.generative import PROJECTIONS, GenerativeConfig, GenerativeStudent
from advl_pipeline.students.interface import LoraSettings
from advl_pipeline.students.pixel_student import normalise_colours

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders what the published template does for pictures and texts; for the size that has no published processor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenVlConfig(GenerativeConfig):
    """Sets how Qwen3-VL sees pictures, besides what all generative students can set."""

    min_pixels: int | None = option(
        None, help="Pixels to which a smaller picture is scaled up [default: as the processor is set].", minimum=1
    )
    max_pixels: int | None = option(
        None, help="Pixels to which a larger picture is scaled down [default: as the processor is set].", minimum=1
    )


TINY_PIXELS = (32 * 32, 64 * 64)


@dataclass(kw_only=True)
class QwenBatch(ChatBatch):
    """Adds each picture's rows and columns of tokens, and what the vision encoder reads its positions from.

    `grids` stays where it is: the encoder attends picture by picture, which needs numbers and no tensor. Of each
    patch `patch_place_U2` (int64) is its row and column, and `nearest_U4` (int64) with `share_U4` (float32) say which
    of the learnt positions lie around it, and how much of each it takes.
    """

    grids: tuple[tuple[int, int], ...]
    patch_place_U2: torch.Tensor
    nearest_U4: torch.Tensor
    share_U4: torch.Tensor


class QwenVl(GenerativeStudent):
    """Runs Qwen3-VL as a student; `--init` with a config.json beside it takes any dense size of the family."""

    config: QwenVlConfig
    config_class: ClassVar[type[GenerativeConfig]] = QwenVlConfig
    smaller_pictures: ClassVar[str] = "max_pixels=262144"
    lora: LoraSettings | None = LoraSettings(rank=64, alpha=16.0, targets=PROJECTIONS)

    def __init__(self, name: str, config: QwenVlConfig) -> None:
        super().__init__(name, config)
        self.decoder._deepstack_process = add_inner_features

    @property
    def decoder(self) -> Any:
        return self.model.model.language_model

    def load_processor(self) -> Any:
        config, vision = self.config, self.model.config.vision_config
        processor = load_processor(Qwen3VLProcessor, config.tokenizer, embedded=lambda: embedded_processor(vision))
        pictures = processor.image_processor
        fewest = config.min_pixels or pictures.size.shortest_edge
        most = config.max_pixels or pictures.size.longest_edge
        if fewest > most:
            raise ConfigError(
                "Pictures cannot be scaled to what is asked.",
                where=config.tokenizer,
                why=f"at least {fewest} pixels and at most {most}",
                next_command=f"--student-option min_pixels={most}",
            )
        pictures.size = {"shortest_edge": fewest, "longest_edge": most}
        return processor

    def require_inputs(self) -> None:
        super().require_inputs()
        pictures, vision = self.processor.image_processor, self.model.config.vision_config
        made = (pictures.patch_size, pictures.temporal_patch_size, pictures.merge_size)
        taken = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        if made != taken:
            raise self.unfit(f"edge, frames and merged edge of its patches are {made}, {self.name} takes {taken}")

    def read_picture(self, unit: ImageUnit) -> Picture:
        # Scaling of the values is left to the device, which is sent a quarter of the bytes.
        try:
            read = self.processor.image_processor(
                [read_rgb(unit.path)], do_rescale=False, do_normalize=False, return_tensors="pt"
            )
        except ValueError as error:
            raise DatasetError(
                "The picture cannot be cut into patches.",
                where=str(unit.path),
                why=str(error).split("\n", maxsplit=1)[0],
                next_command="--on-error skip, or crop the picture",
            ) from None
        merge = self.processor.image_processor.merge_size
        rows, columns = (int(size) // merge for size in read["image_grid_thw"][0, 1:])
        return Picture(
            token_ids=(self.chat.image_token_id,) * (rows * columns),
            pixels=read["pixel_values"].to(torch.uint8),
            places_R4=grid_rectangles(rows, columns),
        )

    def collate(self, examples: Sequence[Example]) -> QwenBatch:
        batch = super().collate(examples)
        grids = tuple((int(rows), int(columns)) for rows, columns in _token_grid(batch).tolist())
        encoder = self.model.model.visual
        grid_B3, merge = self._patch_grids(grids), int(self.model.config.vision_config.spatial_merge_size)
        nearest_U4, share_U4 = get_vision_interpolation_indices_and_weights(
            grid_B3,
            num_grid_per_side=encoder.num_grid_per_side,
            mode=encoder.interpolation_mode,
            align_corners=encoder.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        return QwenBatch(
            **vars(batch),
            grids=grids,
            patch_place_U2=get_vision_position_ids(grid_B3, merge),
            nearest_U4=nearest_U4,
            share_U4=share_U4,
        )

    def picture_features(self, batch: ChatBatch) -> torch.Tensor:
        assert isinstance(batch, QwenBatch)
        vision_output = self.model.model.visual(
            self._patches(batch.pixels),
            grid_thw=self._patch_grids(batch.grids),
            position_ids=batch.patch_place_U2,
            interp_indices=batch.nearest_U4,
            interp_weights=batch.share_U4,
        )
        return torch.stack([vision_output.pooler_output, *vision_output.deepstack_features], dim=1)

    def decoder_inputs(self, place_M: torch.Tensor, shown_MDH: torch.Tensor) -> dict[str, Any]:
        return {"visual_pos_masks": place_M, "deepstack_visual_embeds": list(shown_MDH[:, 1:].unbind(1))}

    def positions(self, batch: ChatBatch) -> torch.Tensor:
        """Return (3, N, S), as transformers' `get_rope_index` gives them for conversations with one picture."""
        rows_N1, columns_N1 = (batch.per_sequence(size)[:, None] for size in _token_grid(batch).unbind(1))
        picture_NS = batch.sequence_ids_NS == self.chat.image_token_id
        place_NS = torch.arange(picture_NS.shape[1], device=picture_NS.device).expand_as(picture_NS)
        start_N1 = picture_NS.int().argmax(1, keepdim=True)
        token_NS = (place_NS - start_N1).clamp(min=0)
        # The text goes on behind the longer side of the picture.
        behind_NS = place_NS - rows_N1 * columns_N1 + torch.maximum(rows_N1, columns_N1)
        text_NS = torch.where(place_NS < start_N1, place_NS, behind_NS)
        axes = (start_N1, start_N1 + token_NS // columns_N1, start_N1 + token_NS % columns_N1)
        return torch.stack([torch.where(picture_NS, axis, text_NS) for axis in axes])

    def prompts(self, batch: ChatBatch, place_NS: torch.Tensor, shown_NS: torch.Tensor) -> dict[str, Any]:
        assert isinstance(batch, QwenBatch)
        # transformers computes positions and inner features of pictures from the ids.
        ids_NS = batch.sequence_ids_NS.gather(1, place_NS).where(shown_NS, self.chat.pad_id)
        patches = torch.split(self._patches(batch.pixels), list(batch.num_pixels))
        repeated = [part for part, number in zip(patches, batch.num_candidates, strict=True) for _ in range(number)]
        return {
            "input_ids": ids_NS,
            "attention_mask": shown_NS.long(),
            "pixel_values": torch.cat(repeated),
            "image_grid_thw": self._patch_grids(
                [grid for grid, number in zip(batch.grids, batch.num_candidates, strict=True) for _ in range(number)]
            ).to(ids_NS.device),
            "mm_token_type_ids": (ids_NS == self.chat.image_token_id).int(),
        }

    def _patches(self, pixels_UF: torch.Tensor) -> torch.Tensor:
        """Return the patches' values as the processor normalises them; a patch has one colour after the other."""
        pictures = self.processor.image_processor
        values_U3P = (pixels_UF.to(next(self.parameters()).dtype) * pictures.rescale_factor).unflatten(1, (3, -1))
        normalised = normalise_colours(values_U3P, pictures.image_mean, pictures.image_std, axes_behind=1)
        return normalised.flatten(1)

    def _patch_grids(self, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return (B, 3) int64: frames, rows and columns of each picture's patches."""
        merge = int(self.model.config.vision_config.spatial_merge_size)
        return torch.tensor([[1, rows * merge, columns * merge] for rows, columns in grids])


def _token_grid(batch: ChatBatch) -> torch.Tensor:
    """Return (B, 2) int64: rows and columns of each picture's tokens, which lie row by row."""
    assert batch.places_BR4 is not None
    top_BR = batch.places_BR4[..., 1]
    columns_B = (top_BR == top_BR[:, :1]).sum(1)
    return torch.stack([(~top_BR.isnan()).sum(1) // columns_B, columns_B], dim=1)


def add_inner_features(hidden_BWH: torch.Tensor, place_M: torch.Tensor, features_MH: torch.Tensor) -> torch.Tensor:
    """Add features to states: at places that are counted over all rows, or where a mask is, as transformers has it.

    Of a mask the device must tell the host how many places there are, once for each layer.
    """
    if place_M.dtype == torch.bool:
        place_M = torch.nonzero(place_M.flatten())[:, 0]
    return hidden_BWH.flatten(0, 1).index_add(0, place_M, features_MH.to(hidden_BWH.dtype)).view_as(hidden_BWH)


def embedded_processor(vision: Any) -> Any:
    """Return a processor over the embedded vocabulary, with the published one's marks and a template like it.

    Args:
        vision: transformers' configuration of the vision encoder.
    """
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = embedded_chat_tokenizer(marks, eos_token="<|im_end|>")
    sizes = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "size": {"shortest_edge": TINY_PIXELS[0], "longest_edge": TINY_PIXELS[1]},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen3VLVideoProcessor(**sizes), chat_template=CHAT_TEMPLATE
    )
