"""METER as a student: a CLIP vision transformer and RoBERTa under a cross-modal stack, from pixels.

As in the original, the vision transformer loses its last block and its final norm is applied to every token.

Shapes: N sequences, L text tokens, R visual tokens (class token, then patches), H width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel

from advl_pipeline.configuration import option
from advl_pipeline.students.bert_parts import norm_first_head
from advl_pipeline.students.building import builder
from advl_pipeline.students.checkpoints import KeyRules, interpolate_grid
from advl_pipeline.students.interface import Perturbation, StudentBatch, StudentOutput
from advl_pipeline.students.meter_core import RENAMES, CrossModalStack, split_in_projections
from advl_pipeline.students.pixel_student import PixelBatch, PixelStudent, PixelStudentConfig
from advl_pipeline.students.text_rows import longer_texts, text_length
from advl_pipeline.students.text_student import TINY, TwoStreams


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterConfig(PixelStudentConfig):
    """Architecture of METER with CLIP-ViT-B/16 and RoBERTa-base."""

    num_layers: int = option(6, help="Cross-modal layers of each stream.", minimum=1)
    text_layers: int = option(12, help="Layers of RoBERTa.", minimum=1)
    vision_layers: int = option(11, help="Blocks of the vision transformer: CLIP's without the last.", minimum=1)
    patch_size: int = option(16, help="Side of a patch in pixels.", minimum=1)
    tokenizer: str = option("roberta-base", help="Folder or hub name of the tokenizer, or minilm-l6.")
    vocab_size: int = option(50265, help="Rows of the word table.", minimum=1)
    max_positions: int = option(
        514, help="Rows of RoBERTa's position table; two of them stand for padding.", minimum=1
    )
    max_text_length: int = text_length(50)
    overlong: Literal["error", "cut"] = longer_texts("cut")


class Meter(TwoStreams, PixelStudent):
    """The student. State names follow the original where the modules are the original's."""

    config: MeterConfig
    num_separators = 2
    config_class: ClassVar[type[MeterConfig]] = MeterConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "meter": {},
        "meter-tiny": {
            **TINY,
            "text_layers": 1,
            "vision_layers": 1,
            "image_size": 64,
            "vocab_size": 30522,
            "max_text_length": 128,
        },
    }
    rules: ClassVar[KeyRules] = KeyRules(
        rename=(
            (r"^vit_model\.visual\.", "vision.visual."),
            *((rf"^(vision\.visual.*){pattern}", rf"\1{replacement}") for pattern, replacement in RENAMES),
            (r"^vision\.visual\.", "vision."),
            (r"^text_transformer\.", "text."),
            (r"^(cross_modal_|token_type_embeddings)", r"cross_modal.\1"),
        ),
        ignore=(
            r"^(mlm_score|itm_score|rank_output|vqa_classifier|nlvr2_classifier|snli_classifier|vcr\w*classifier)\b",
            # CLIP's text tower, its projection and the vision block that METER drops.
            r"^vit_model\.(?!visual\.)",
            r"^vit_model\.visual\.(proj$|transformer\.resblocks\.11\.)",
            r"^text_transformer\.(pooler\.|embeddings\.position_ids$)",
        ),
        resize=((r"^vision\.embeddings\.position_embedding", interpolate_grid),),
        prepare=split_in_projections,
    )

    def __init__(self, name: str, config: MeterConfig) -> None:
        super().__init__(name, config)
        self.pooled_size = 2 * config.hidden_size
        self.text = RobertaModel(
            RobertaConfig(
                **config.transformers_sizes,
                num_hidden_layers=config.text_layers,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                pad_token_id=self.tokenizer.pad_id,
            ),
            add_pooling_layer=False,
        )
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=4 * config.hidden_size,
                image_size=config.image_size,
                patch_size=config.patch_size,
            )
        )
        self.cross_modal = CrossModalStack(
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            text_size=config.hidden_size,
            image_size=config.hidden_size,
            dropout=config.dropout,
        )

    def encode_unimodal(self, batch: StudentBatch) -> StudentOutput:
        """Return what enters the cross-modal layers; the picture's half of the pooled pair is zero."""
        assert isinstance(batch, PixelBatch)
        text_NLH, image_NRH = self.cross_modal.transform(*self._towers(batch))
        pooled_NH = self.cross_modal.cross_modal_text_pooler(text_NLH)
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=image_NRH,
            pooled_NP=torch.cat([pooled_NH, torch.zeros_like(pooled_NH)], dim=-1),
            image_state_NH=image_NRH[:, 0],
        )

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        return norm_first_head(self.pooled_size, num_classes, hidden=self.pooled_size)

    @staticmethod
    def head_rules(task: str) -> KeyRules:
        """Return the rules that take a task's head out of an original checkpoint."""
        name = "snli_classifier" if task == "snli-ve" else "vqa_classifier"
        return KeyRules(rename=((rf"^{name}\.", ""),), ignore=(rf"^(?!{name}\.)",))

    def _towers(self, batch: PixelBatch) -> tuple[torch.Tensor, torch.Tensor]:
        ids_NL, mask_NL = batch.token_ids_NL, batch.token_mask_NL
        text_NLH = self.once(
            "text",
            (ids_NL, mask_NL),
            lambda: self.text(input_ids=ids_NL, attention_mask=mask_NL.long()).last_hidden_state,
        )
        image_BRH = self.per_picture(
            batch, lambda pixels: self.vision.post_layernorm(self.vision(pixel_values=pixels).last_hidden_state)
        )
        return text_NLH, batch.per_sequence(image_BRH)

    def run_streams(self, batch: StudentBatch, perturbation: Perturbation | None = None) -> StudentOutput:
        assert isinstance(batch, PixelBatch)
        self.refuse_perturbation(perturbation)
        texts, images, pooled = self.cross_modal(*self._towers(batch), batch.token_mask_NL)
        return StudentOutput(
            text_states_NLH=texts[-1],
            visual_states_NRH=images[-1],
            pooled_NP=pooled,
            image_state_NH=images[-1][:, 0],
        )


build = builder(Meter)
