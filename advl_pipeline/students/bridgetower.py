"""BridgeTower as a student, with transformers' `BridgeTowerModel` and METER's head on the pooled pair.

Shapes: N sequences, L text tokens, R visual tokens (class token, then patches), H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import BridgeTowerConfig as HfBridgeTowerConfig
from transformers import BridgeTowerModel

from advl_pipeline.base.configuration import option
from advl_pipeline.students.bert_parts import compute_dtype, norm_first_head, padding_bias
from advl_pipeline.students.checkpoints import KeyRules, interpolate_grid, published_keys
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.meter import IMAGE_STREAM, TEXT_STREAM, pooled_pair
from advl_pipeline.students.pixel_student import PixelBatch, PixelStudent, PixelStudentConfig
from advl_pipeline.students.presets import library_config
from advl_pipeline.students.text_student import States, TwoStreams


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeTowerConfig(PixelStudentConfig):
    """Architecture of BridgeTower: METER's with other towers. The vision tower has one head per 64 of its width."""

    tower_layers: int = option(12, help="Layers of each single-modality tower.", minimum=1)


class BridgeTower(TwoStreams[PixelBatch], PixelStudent):
    """BridgeTower as a student. State names are transformers' with the prefix `model.`."""

    config: BridgeTowerConfig
    num_separators = 2
    config_class: ClassVar[type[BridgeTowerConfig]] = BridgeTowerConfig
    rules: ClassVar[KeyRules] = published_keys(
        "bridgetower", resize={r"visual\.embeddings\.position_embedding": interpolate_grid}
    )

    def __init__(self, name: str, config: BridgeTowerConfig) -> None:
        super().__init__(name, config)
        self.pooled_size = 2 * config.hidden_size
        padding = {"pad_token_id": self.tokenizer.pad_id}
        self.model = BridgeTowerModel(library_config(HfBridgeTowerConfig, config, text_config=padding))

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return norm_first_head(self.pooled_size, num_classes, hidden=self.pooled_size)

    def lower_text(self, batch: PixelBatch, delta: Perturbation) -> States:
        """Return the text tower's states for each cross-modal layer."""
        tower = self.model.text_model
        text_NLH: torch.Tensor = tower.embeddings(input_ids=batch.token_ids_NL)
        bias = padding_bias(batch.token_mask_NL, compute_dtype(text_NLH))
        states = []
        for layer in tower.encoder.layer:
            text_NLH = layer(text_NLH, bias)
            states.append(text_NLH)
        return tuple(states[-self.config.num_layers :])

    def lower_picture(self, batch: PixelBatch, delta: Perturbation) -> States:
        """Return the vision tower's states of each picture, for each cross-modal layer."""
        tower = self.model.vision_model.visual

        def run(pixels_B3SS: torch.Tensor) -> tuple[torch.Tensor, ...]:
            image_RBH = tower.forward_pre(pixels_B3SS)
            states = []
            for block in tower.transformer.resblocks:
                image_RBH = block(image_RBH)
                states.append(image_RBH)
            return tuple(tower.forward_post(image_RBH) for image_RBH in states[-self.config.num_layers :])

        states: States = self.per_picture(batch, run)
        return states

    def cross(self, batch: PixelBatch, texts: States, pictures: States) -> tuple[torch.Tensor, torch.Tensor]:
        """Run transformers' layers; unlike its model, the vision tower runs once per picture, not per candidate."""
        model, types = self.model, self.model.token_type_embeddings.weight
        bias = padding_bias(batch.token_mask_NL, compute_dtype(texts[0]))
        text_NLH, image_NRH = texts[0], pictures[0]
        for index, (lower_NLH, lower_BRH) in enumerate(zip(texts, pictures, strict=True)):
            from_text = model._apply_text_transform(lower_NLH, index) + types[TEXT_STREAM]
            from_image = batch.per_sequence(model._apply_image_transform(lower_BRH, index) + types[IMAGE_STREAM])
            if index == 0:
                from_text = model.cross_modal_text_layernorm(from_text)
                from_image = model.cross_modal_image_layernorm(from_image)
            else:
                from_text = model.cross_modal_text_link_tower[index - 1](from_text, text_NLH, bias)
                from_image = model.cross_modal_image_link_tower[index - 1](from_image, image_NRH, None)
            text_NLH = model.cross_modal_text_layers[index](from_text, from_image, attention_mask=bias)[0]
            image_NRH = model.cross_modal_image_layers[index](from_image, from_text, encoder_attention_mask=bias)[0]
        return text_NLH, image_NRH

    def pool(self, text_NLH: torch.Tensor, picture_NRH: torch.Tensor | None) -> torch.Tensor:
        return pooled_pair(self.model, text_NLH, picture_NRH)
