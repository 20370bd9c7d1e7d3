"""ModernVBERT as a student, with transformers' modules: SigLIP patches inside a bidirectional ModernBERT.

The picture's tokens are inserted after the first text token. Heads read the first token.

Shapes: B examples, N sequences, L text tokens, R visual tokens, S = L + R, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import ModernVBertConfig as HfModernVBertConfig
from transformers import ModernVBertModel

from advl_pipeline.base.configuration import option
from advl_pipeline.students.bert_parts import additive_mask, compute_dtype
from advl_pipeline.students.checkpoints import KeyRules, published_keys
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.pixel_student import HALF_MEAN, HALF_STD, PixelBatch, PixelStudent, PixelStudentConfig
from advl_pipeline.students.presets import library_config
from advl_pipeline.students.text_student import SingleStream


@dataclass(frozen=True, kw_only=True, slots=True)
class ModernVBertConfig(PixelStudentConfig):
    """Architecture of ModernVBERT; the last row of its word embeddings is the picture's token."""

    vision_size: int = option(768, help="Width of SigLIP.", minimum=1)
    vision_layers: int = option(12, help="Layers of SigLIP.", minimum=1)
    vision_intermediate_size: int = option(3072, help="Width of SigLIP's feed-forward layers.", minimum=1)
    pixel_shuffle: int = option(4, help="Patches merged along each side into one token.", minimum=1)


class ModernVBert(SingleStream[PixelBatch], PixelStudent):
    """ModernVBERT as a student. State names are transformers' with the prefix `model.`."""

    config: ModernVBertConfig
    config_class: ClassVar[type[ModernVBertConfig]] = ModernVBertConfig
    rules: ClassVar[KeyRules] = published_keys("modernvbert")
    pixel_mean, pixel_std = HALF_MEAN, HALF_STD
    num_class_tokens = 0
    num_unused_rows = 128

    def __init__(self, name: str, config: ModernVBertConfig) -> None:
        super().__init__(name, config)
        tokenizer = self.tokenizer
        ids = {"pad_token_id": tokenizer.pad_id, "cls_token_id": tokenizer.cls_id, "bos_token_id": tokenizer.cls_id}
        ids |= {"sep_token_id": tokenizer.sep_id, "eos_token_id": tokenizer.sep_id}
        settings = {"image_token_id": config.vocab_size - 1, "text_config": ids}
        self.model = ModernVBertModel(library_config(HfModernVBertConfig, config, **settings))

    @property
    def num_visual(self) -> int:
        side = self.config.image_size // self.config.patch_size // self.config.pixel_shuffle
        return side * side

    @property
    def fusion_layers(self) -> Sequence[Any]:
        return list(self.model.text_model.layers)

    def embed(self, batch: PixelBatch, delta: Perturbation, *, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        image_BRH = self.per_picture(
            batch, lambda pixels: self.model.connector(self.model.vision_model(pixel_values=pixels).last_hidden_state)
        )
        return self.model.get_input_embeddings()(batch.token_ids_NL), batch.per_sequence(image_BRH)

    def run_layers(
        self, x_NSH: torch.Tensor, batch: PixelBatch, *, num_text: int, separate: bool, **how: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Most layers have sliding-window attention, so attention to the picture measures distance, not relevance.
        text_mask, visual_mask = batch.token_mask_NL, batch.visual_mask_NR
        if not separate:
            return self._run(x_NSH, text_mask, visual_mask), None
        text_NSH = self._run(x_NSH, text_mask, torch.zeros_like(visual_mask))
        picture_NSH = self._run(x_NSH, batch.without_text().token_mask_NL, visual_mask)
        return torch.cat([text_NSH[:, :num_text], picture_NSH[:, num_text:]], dim=1), None

    def pool(self, text_NLH: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
        return text_NLH[:, 0]

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        """Return the head of transformers' sequence classification: Linear, GELU, LayerNorm, Linear, no biases."""
        width = self.hidden_size
        return nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.GELU(),
            nn.LayerNorm(width, eps=1e-5, bias=False),
            nn.Linear(width, num_classes),
        )

    def _run(self, x_NSH: torch.Tensor, text_mask_NL: torch.Tensor, visual_mask_NR: torch.Tensor) -> torch.Tensor:
        """Return last states (N, S, H); the model reads the picture after the text's first token."""
        num_text, num_visual = text_mask_NL.shape[1], visual_mask_NR.shape[1]
        x_NSH = torch.cat([x_NSH[:, :1], x_NSH[:, num_text:], x_NSH[:, 1:num_text]], dim=1)
        seen_N11S = torch.cat([text_mask_NL[:, :1], visual_mask_NR, text_mask_NL[:, 1:]], dim=1)[:, None, None, :]
        place = torch.arange(x_NSH.shape[1], device=x_NSH.device)
        near = (place[:, None] - place[None, :]).abs() <= self.model.text_model.config.sliding_window
        # The model's own mask code checks for padding, which synchronises with the device.
        masks = {"full_attention": seen_N11S, "sliding_attention": seen_N11S & near}
        dtype = compute_dtype(x_NSH)
        states = self.model.text_model(
            inputs_embeds=x_NSH, attention_mask={kind: additive_mask(seen, dtype) for kind, seen in masks.items()}
        ).last_hidden_state
        end = 1 + num_visual
        return torch.cat([states[:, :1], states[:, end:], states[:, 1:end]], dim=1)
