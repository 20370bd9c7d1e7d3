"""METER as a student over pixels: a CLIP vision transformer and RoBERTa below a cross-modal stack.

As in the original, the vision transformer has no last block, and its final norm is applied to every token. The
stack's layers are transformers' `BridgeTowerBertCrossLayer`, the same code with the same names. Follows
zdou0830/METER f4f0934, `meter/modules/meter_module.py`.

METER's checkpoints use OpenAI CLIP's names for the vision transformer, which are mapped to transformers' names.
OpenAI's attention also stores query, key and value in one matrix, which is split.

Shapes: N sequences, L text tokens, R visual tokens (class token, then patches), H width, D and E widths of the text
and vision encoders, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import BridgeTowerTextConfig, CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from advl_pipeline.base.configuration import option
from advl_pipeline.students.bert_parts import compute_dtype, initialise_bert, norm_first_head, padding_bias
from advl_pipeline.students.checkpoints import KeyRules, interpolate_grid, published_keys, rules_below
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.pixel_student import PixelBatch, PixelStudent, PixelStudentConfig
from advl_pipeline.students.presets import library_config
from advl_pipeline.students.text_student import States, TwoStreams

TEXT_STREAM, IMAGE_STREAM = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterConfig(PixelStudentConfig):
    """Architecture of METER; `num_layers` counts the cross-modal layers of each stream.

    `max_positions` includes two rows of RoBERTa's position embeddings that are reserved for padding.
    """

    text_layers: int = option(12, help="Layers of RoBERTa.", minimum=1)
    vision_layers: int = option(11, help="Blocks of the vision transformer: CLIP's without the last.", minimum=1)


class CrossModalStack(nn.Module):
    """Transforms, modality embeddings, layers and poolers, with the names of the original files."""

    def __init__(self, config: MeterConfig, *, text_size: int, image_size: int) -> None:
        super().__init__()
        cross = library_config(BridgeTowerTextConfig, config)
        # Masks are always explicit below: without a mask, SDPA would use the layers' causal flag.
        cross._attn_implementation = "sdpa"
        width, numbers = config.hidden_size, range(config.num_layers)
        self.cross_modal_text_transform = nn.Linear(text_size, width)
        self.cross_modal_image_transform = nn.Linear(image_size, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.cross_modal_image_layers = nn.ModuleList(BridgeTowerBertCrossLayer(cross) for _ in numbers)
        self.cross_modal_text_layers = nn.ModuleList(BridgeTowerBertCrossLayer(cross) for _ in numbers)
        self.cross_modal_image_pooler = BertPooler(cross)
        self.cross_modal_text_pooler = BertPooler(cross)
        initialise_bert(self)

    def text(self, text_NLD: torch.Tensor) -> torch.Tensor:
        """Return the text input of the first layer, (N, L, H)."""
        embedded: torch.Tensor = self.cross_modal_text_transform(text_NLD)
        return embedded + self.token_type_embeddings.weight[TEXT_STREAM]

    def image(self, image_NRE: torch.Tensor) -> torch.Tensor:
        """Return the picture input of the first layer, (N, R, H)."""
        embedded: torch.Tensor = self.cross_modal_image_transform(image_NRE)
        return embedded + self.token_type_embeddings.weight[IMAGE_STREAM]

    def layers(
        self, text: torch.Tensor, image: torch.Tensor, text_mask_NL: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield text and image states after each layer; both streams read the previous layer's states."""
        text_bias = padding_bias(text_mask_NL.bool(), compute_dtype(text))
        image_bias = image.new_zeros(image.shape[0], 1, 1, image.shape[1])
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            text, image = (
                text_layer(text, image, attention_mask=text_bias, encoder_attention_mask=image_bias)[0],
                image_layer(image, text, attention_mask=image_bias, encoder_attention_mask=text_bias)[0],
            )
            yield text, image


def pooled_pair(stack: Any, text_NLH: torch.Tensor, image_NRH: torch.Tensor | None) -> torch.Tensor:
    """Return a stack's pooled states (N, 2H), text first; the picture's half is 0 without picture states."""
    pooled_NH = stack.cross_modal_text_pooler(text_NLH)
    other_NH = torch.zeros_like(pooled_NH) if image_NRH is None else stack.cross_modal_image_pooler(image_NRH)
    return torch.cat([pooled_NH, other_NH], dim=-1)


def split_in_projections(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Split each joint (3H, ...) projection into `q_proj`, `k_proj` and `v_proj`."""
    split: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        match = re.match(r"^(.*\.attn\.)in_proj_(weight|bias)$", name)
        if match is None:
            split[name] = value
            continue
        for letter, piece in zip("qkv", value.chunk(3), strict=True):
            split[f"{match[1]}{letter}_proj.{match[2]}"] = piece.contiguous()
    return split


class Meter(TwoStreams[PixelBatch], PixelStudent):
    """METER as a student. State names are the original's for the original's modules."""

    config: MeterConfig
    num_separators = 2
    config_class: ClassVar[type[MeterConfig]] = MeterConfig
    rules: ClassVar[KeyRules] = published_keys(
        "meter",
        resize={r"^vision\.embeddings\.position_embedding": interpolate_grid},
        prepare=split_in_projections,
    )

    def __init__(self, name: str, config: MeterConfig) -> None:
        super().__init__(name, config)
        width = config.hidden_size
        self.pooled_size = 2 * width
        roberta = library_config(RobertaConfig, config, pad_token_id=self.tokenizer.pad_id)
        self.text = RobertaModel(roberta, add_pooling_layer=False)
        self.vision = CLIPVisionModel(library_config(CLIPVisionConfig, config, intermediate_size=4 * width))
        self.cross_modal = CrossModalStack(config, text_size=width, image_size=width)

    def lower_text(self, batch: PixelBatch, delta: Perturbation) -> States:
        ids_NL, mask_NL = batch.token_ids_NL, batch.token_mask_NL
        text_NLH = self.once(
            "text encoder",
            (ids_NL, mask_NL),
            lambda: self.text(input_ids=ids_NL, attention_mask=mask_NL.long()).last_hidden_state,
        )
        return (self.cross_modal.text(text_NLH),)

    def lower_picture(self, batch: PixelBatch, delta: Perturbation) -> States:
        image_BRH = self.per_picture(
            batch, lambda pixels: self.vision.post_layernorm(self.vision(pixel_values=pixels).last_hidden_state)
        )
        return (self.cross_modal.image(batch.per_sequence(image_BRH)),)

    def cross(self, batch: PixelBatch, texts: States, pictures: States) -> tuple[torch.Tensor, torch.Tensor]:
        *_, last = self.cross_modal.layers(texts[-1], pictures[-1], batch.token_mask_NL)
        return last

    def pool(self, text_NLH: torch.Tensor, picture_NRH: torch.Tensor | None) -> torch.Tensor:
        return pooled_pair(self.cross_modal, text_NLH, picture_NRH)

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return norm_first_head(self.pooled_size, num_classes, hidden=self.pooled_size)

    @classmethod
    def head_rules(cls, kind: str) -> KeyRules:
        return rules_below("snli_classifier" if kind == "classes" else "vqa_classifier")
