"""SmolVLM as a student, on transformers' modules: SigLIP tiles, shuffled into a causal language model.

A picture is scaled and cut into square tiles as the published processor does it, with the whole picture, squeezed to
one tile, at the end. Without splitting there is the whole picture alone.

The processor is Idefics3's, of which SmolVLM's is a copy that also reads films and needs a package for that.

Shapes: U tiles, 3 colours, E edge of a tile in pixels, R picture tokens, H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import Idefics3ImageProcessor, Idefics3Processor

from advl_pipeline.configuration import option
from advl_pipeline.datasets.pictures import read_rgb
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import ConfigError
from advl_pipeline.geometry import grid_rectangles
from advl_pipeline.students.chat import ChatBatch, Picture, embedded_chat_tokenizer, load_processor
from advl_pipeline.students.generative import PROJECTIONS, GenerativeConfig, GenerativeStudent
from advl_pipeline.students.interface import LoraSettings
from advl_pipeline.students.pixel_student import normalise_colours

MAX_SPLITS = 6
"""Rows and columns of tiles that the published vocabulary names."""

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Renders what the published template does; for the sizes that have no published processor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmolVlmConfig(GenerativeConfig):
    """Sets how SmolVLM sees pictures, besides what all generative students can set."""

    image_splitting: bool | None = option(
        None, help="Cut pictures into tiles; without, one tile shows all [default: as the processor is set]."
    )
    longest_edge: int | None = option(
        None,
        help="Pixels to which a picture's longer edge is scaled before it is cut [default: as the processor is set].",
        minimum=1,
    )


class SmolVlm(GenerativeStudent):
    """Runs SmolVLM as a student; `--init` with a config.json beside it takes any size of it and of Idefics3."""

    config: SmolVlmConfig
    config_class: ClassVar[type[GenerativeConfig]] = SmolVlmConfig
    smaller_pictures: ClassVar[str] = "image_splitting=false"
    lora: LoraSettings | None = LoraSettings(rank=8, alpha=8.0, targets=PROJECTIONS)

    def __init__(self, name: str, config: SmolVlmConfig) -> None:
        super().__init__(name, config)
        self._picture_ids: dict[tuple[int, int], tuple[int, ...]] = {}

    @property
    def decoder(self) -> Any:
        return self.model.model.text_model

    @property
    def grid_side(self) -> int:
        """Picture tokens along each side of a tile."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size // self.model.config.scale_factor)

    def load_processor(self) -> Any:
        edge, side = self.model.config.vision_config.image_size, self.grid_side
        processor = load_processor(
            Idefics3Processor, self.config.tokenizer, embedded=lambda: embedded_processor(edge, side)
        )
        pictures = processor.image_processor
        if self.config.image_splitting is not None:
            pictures.do_image_splitting = self.config.image_splitting
        if self.config.longest_edge is not None:
            pictures.size = {"longest_edge": self.config.longest_edge}
        return processor

    def require_inputs(self) -> None:
        super().require_inputs()
        edge = self.model.config.vision_config.image_size
        tile = self.processor.image_processor.max_image_size["longest_edge"]
        if (tile, self.processor.image_seq_len) != (edge, self.grid_side**2):
            raise self.unfit(
                f"it makes {self.processor.image_seq_len} tokens of a tile of {tile} pixels, "
                f"{self.name} takes {self.grid_side**2} of {edge}"
            )

    def read_picture(self, unit: ImageUnit) -> Picture:
        picture = read_rgb(unit.path)
        # Scaling of the values is left to the device, which is sent a quarter of the bytes.
        read = self.processor.image_processor(
            [[picture]], do_rescale=False, do_normalize=False, return_row_col_info=True, return_tensors="pt"
        )
        grid = (read["rows"][0][0], read["cols"][0][0])
        if max(grid) > MAX_SPLITS:
            edge = MAX_SPLITS * int(self.model.config.vision_config.image_size)
            raise ConfigError(
                f"A picture becomes {grid[0]} x {grid[1]} tiles; the model names {MAX_SPLITS} x {MAX_SPLITS}.",
                where=str(unit.path),
                next_command=f"--student-option longest_edge={edge}",
            )
        if grid not in self._picture_ids:
            asked = self.processor(text=[self.processor.image_token], images=[[picture]], add_special_tokens=False)
            self._picture_ids[grid] = tuple(int(token) for token in asked["input_ids"][0])
        return Picture(
            token_ids=self._picture_ids[grid],
            pixels=read["pixel_values"][0].to(torch.uint8),
            places_R4=tile_places(*grid, self.grid_side),
        )

    def picture_features(self, batch: ChatBatch) -> torch.Tensor:
        pictures, parts = self.processor.image_processor, self.model.model
        pixels_U3EE = batch.pixels.to(next(self.parameters()).dtype) * pictures.rescale_factor
        pixels_U3EE = normalise_colours(pixels_U3EE, pictures.image_mean, pictures.image_std, axes_behind=2)
        # Tiles have no padding. The encoder's own pass would look for some, which makes the host wait for the device.
        encoder = parts.vision_model
        side = pixels_U3EE.shape[-1] // encoder.patch_size
        everywhere = torch.ones(len(pixels_U3EE), side, side, dtype=torch.bool, device=pixels_U3EE.device)
        embedded = encoder.embeddings(pixel_values=pixels_U3EE, patch_attention_mask=everywhere)
        patches = encoder.encoder(inputs_embeds=embedded, attention_mask=None).last_hidden_state
        features: torch.Tensor = parts.connector(encoder.post_layernorm(patches))
        return features.flatten(0, 1)[:, None]


def tile_places(rows: int, columns: int, side: int) -> npt.NDArray[np.float32]:
    """Return (R, 4): where the tokens of a picture lie, tile by tile, the whole picture's last.

    Tiles cover the picture, which is squeezed to fill them, and so does the last one. Tokens lie row by row.
    """
    grid = grid_rectangles(rows * side, columns * side).reshape(rows, side, columns, side, 4)
    return np.concatenate([grid.swapaxes(1, 2).reshape(-1, 4), grid_rectangles(side, side)])


def embedded_processor(edge: int, side: int) -> Any:
    """Return a processor over the embedded vocabulary, with the published one's marks and template.

    Args:
        edge: of a tile in pixels.
        side: picture tokens along each side of a tile.
    """
    numbers = range(1, MAX_SPLITS + 1)
    marks = ["<image>", "<global-img>", *(f"<row_{row}_col_{column}>" for row in numbers for column in numbers)]
    tokenizer = embedded_chat_tokenizer(
        ["<fake_token_around_image>", *marks], bos_token="<|im_start|>", eos_token="<end_of_utterance>"
    )
    pictures = Idefics3ImageProcessor(size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge})
    return Idefics3Processor(pictures, tokenizer, image_seq_len=side**2, chat_template=CHAT_TEMPLATE)
