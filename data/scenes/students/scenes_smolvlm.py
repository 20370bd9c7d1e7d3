"""`scenes-smolvlm`: a SmolVLM small enough to be pretrained on a CPU, over the boxes of a picture.

SmolVLM's modules, used otherwise in two places, because of its size and of the corpus. The tiles of a picture are the
whole of it and then each box, one token each: what a model of some thousand steps can see. And a word that names an
object by tag also receives that box's features, as in `scenes-vilt`: a chat model sees no boxes and cannot tell what
"object 3" is. Its score also has the agreement of a candidate's words with the boxes that its text tags, which the
heads of the other small students read (`students/answers.py`).

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R picture tokens (whole picture first),
W tokens of an example's row, H width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from advl_data.scenes.config import Pretraining
from advl_data.scenes.students.small import place_of_tags, shares_of_tags
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.students.chat import ChatBatch, packing
from advl_pipeline.students.chat_pictures import Picture
from advl_pipeline.students.generative import GenerativeConfig, GenerativeStudent
from advl_pipeline.students.picture_source import CropRegions, box_positions
from advl_pipeline.students.region_student import tagged_regions
from advl_pipeline.students.saved import builder
from advl_pipeline.students.tokenizer import EMBEDDED_TOKENIZER

TEXT = {
    "model_type": "llama", "rms_norm_eps": 1e-5,
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 30563, "pad_token_id": 0, "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}  # fmt: skip
VISION = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 12,
    "patch_size": 12,
}  # fmt: skip


@dataclass(kw_only=True)
class TaggedChatBatch(ChatBatch):
    """Adds `tag_BW` (int64): the picture token that a token of an example's row refers to by tag, or -1."""

    tag_BW: torch.Tensor


class ScenesSmolVlm(GenerativeStudent):
    """Runs a small SmolVLM over the tagged things of scenes."""

    places = "regions"
    # With 500 steps it knows the pictures of its captions by heart.
    pretraining = Pretraining(warmup_steps=250)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "scenes-smolvlm": {
            "architecture": {
                "model_type": "smolvlm",
                "image_token_id": 30525,
                "scale_factor": 1,
                "tie_word_embeddings": True,
                "text_config": TEXT,
                "vision_config": VISION,
            },
            "tokenizer": EMBEDDED_TOKENIZER,
            "image_splitting": False,
            "align_layer": 1,
            "dropout": 0.1,
            "agreement": 0.1,
        },
    }

    def __init__(self, name: str, config: GenerativeConfig) -> None:
        super().__init__(name, config)
        self.lora = None
        self.regions = CropRegions(int(self.model.config.vision_config.image_size))

    def read_picture(self, unit: ImageUnit) -> Picture:
        crops = torch.from_numpy(self.regions.crops(unit)).permute(0, 3, 1, 2)
        places_R4 = box_positions(unit)[:, :4]
        places_R4[0] = np.nan
        return Picture(text=self.processor.image_token, runs=(len(crops),), pixels=crops, places_R4=places_R4)

    def collate(self, examples: Sequence[Example]) -> TaggedChatBatch:
        batch = super().collate(examples)
        box_R = torch.arange(batch.visual_mask_NR.shape[1]) - 1
        batch = dataclasses.replace(batch, box_index_NR=box_R.where(batch.visual_mask_NR, -1))
        # Padding is written to the template's first token, which names nothing either.
        nothing_NS = torch.full_like(batch.sequence_ids_NS, -1)
        tag_NL = tagged_regions(batch, examples)
        tag_NS = nothing_NS.scatter(1, batch.text_place_NL, tag_NL)
        if batch.spoken_of_NR is not None:
            batch.spoken_of_NR = place_of_tags(shares_of_tags(tag_NL, batch.spoken_of_NR[..., None]), hidden=False)
        # Words that refer to different boxes differ, though they read alike.
        batch.packing = packing(
            batch.num_candidates,
            batch.length_N.numpy(),
            (batch.picture_NS & (batch.sequence_ids_NS == self.chat.image_token_id)).numpy(),
            batch.sequence_ids_NS.numpy(),
            tag_NS.numpy(),
        )
        return TaggedChatBatch(**vars(batch), tag_BW=batch.packing.packed(tag_NS))

    def embed(self, batch: ChatBatch, shown_MDH: torch.Tensor, *, mask_visual: bool = False) -> torch.Tensor:
        assert isinstance(batch, TaggedChatBatch)
        x_BWH = functional.dropout(super().embed(batch, shown_MDH), self.config.dropout, self.training)
        if mask_visual:
            return x_BWH
        shown_BR = batch.visual_place_NR.index_select(0, batch.first_B)
        tagged_BW = shown_BR.gather(1, batch.tag_BW.clamp(min=0))
        tagged_BWH = x_BWH.gather(1, tagged_BW[..., None].expand_as(x_BWH))
        return x_BWH + tagged_BWH * (batch.tag_BW >= 0)[..., None]

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.model.get_input_embeddings(), self.processor.tokenizer.convert_tokens_to_ids("[MASK]")


build = builder(ScenesSmolVlm)
