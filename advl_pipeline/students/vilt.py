"""ViLT as a student, with transformers' modules: one transformer over word pieces and raw patches.

The patches keep their order here. The embedding in transformers shuffles them, which changes only their order.

Shapes: B examples, N sequences, L text tokens, R visual tokens (class token, then patches), S = L + R, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import ViltConfig, ViltModel

from advl_pipeline.students.bert_parts import (
    attention_bias,
    attention_mass,
    compute_dtype,
    norm_first_head,
    token_kinds,
)
from advl_pipeline.students.checkpoints import KeyRules, interpolate_grid, published_keys, rules_below
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.pixel_student import HALF_MEAN, HALF_STD, PixelBatch, PixelStudent, PixelStudentConfig
from advl_pipeline.students.presets import library_config
from advl_pipeline.students.text_student import SingleStream

IMAGE_TYPE = 1


class Vilt(SingleStream[PixelBatch], PixelStudent):
    """ViLT as a student. State names are transformers' with the prefix `model.`."""

    config: PixelStudentConfig
    config_class: ClassVar[type[PixelStudentConfig]] = PixelStudentConfig
    rules: ClassVar[KeyRules] = published_keys(
        "vilt", resize={r"^model\.embeddings\.position_embeddings": interpolate_grid}
    )
    pixel_mean, pixel_std = HALF_MEAN, HALF_STD

    def __init__(self, name: str, config: PixelStudentConfig) -> None:
        super().__init__(name, config)
        self.model = ViltModel(library_config(ViltConfig, config))

    @property
    def fusion_layers(self) -> Sequence[Any]:
        return list(self.model.encoder.layer)

    def embed(self, batch: PixelBatch, delta: Perturbation, *, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        text_NLH = self.embed_text(batch.token_ids_NL, batch.types_NL)
        return text_NLH, batch.per_sequence(self.embed_pixels(self.normalised(batch)))

    def run_layers(
        self, x_NSH: torch.Tensor, batch: PixelBatch, *, num_text: int, separate: bool, **how: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        kinds = token_kinds(batch.token_mask_NL, batch.visual_mask_NR)
        bias = attention_bias(kinds, separate=separate, dtype=compute_dtype(x_NSH))
        *first, last = self.fusion_layers
        for layer in first:
            x_NSH = layer(x_NSH, bias)[0]
        relevance_NL = None
        if how.get("need_relevance"):
            relevance_NL = attention_mass(last.attention.attention, last.layernorm_before(x_NSH), bias, num_text)
        return self.model.layernorm(last(x_NSH, bias)[0]), relevance_NL

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return norm_first_head(self.hidden_size, num_classes, hidden=2 * self.hidden_size)

    @classmethod
    def head_rules(cls, kind: str) -> KeyRules:
        return rules_below("classifier")

    def embed_text(self, token_ids_NL: torch.Tensor, types_NL: torch.Tensor) -> torch.Tensor:
        parts = self.model.embeddings
        embedded = parts.text_embeddings(input_ids=token_ids_NL, token_type_ids=types_NL)
        typed: torch.Tensor = embedded + parts.token_type_embeddings.weight[0]
        return typed

    def embed_pixels(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        parts = self.model.embeddings
        patches_BPH = parts.patch_embeddings(pixels_B3SS).flatten(2).transpose(1, 2)
        tokens_BRH = torch.cat([parts.cls_token.expand(patches_BPH.shape[0], -1, -1), patches_BPH], dim=1)
        placed = parts.dropout(tokens_BRH + parts.position_embeddings)
        typed: torch.Tensor = placed + parts.token_type_embeddings.weight[IMAGE_TYPE]
        return typed
