"""`scenes-smolvlm`: a SmolVLM small enough for pretraining on a CPU, over the boxes of a picture.

It differs from SmolVLM in two places because of its size and of the corpus. The tiles of a picture are the full
picture and then each box, with one token each: as much as a few thousand training steps can use. And a word that
names an object by tag also receives that box's features, as in `scenes-vilt`: a chat model receives no boxes and
cannot resolve "object 3". Its score also includes the agreement of a candidate's words with its tagged boxes, which
the heads of the other small students read.

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R picture tokens (full picture first),
W tokens of an example's row, H width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from advl_data.scenes.config import Pretraining
from advl_data.scenes.students.small import place_of_tags, shares_of_tags
from advl_pipeline.base.configuration import option
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate, Example, ImageUnit
from advl_pipeline.datasets.words import is_function_word, word_spans
from advl_pipeline.students.chat import ChatRow
from advl_pipeline.students.chat_batch import ChatBatch
from advl_pipeline.students.chat_config import GenerativeConfig
from advl_pipeline.students.chat_pictures import Picture
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.interface import Answered
from advl_pipeline.students.picture_source import CropRegions, box_positions
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesSmolVlmConfig(GenerativeConfig):
    """Settings of a chat model and of the term added to its likelihoods."""

    agreement: float = option(
        0.0,
        help="Temperature of the match between a candidate's words and the boxes that it tags, which is added to its "
        "likelihood per token; 0 leaves it out.",
        minimum=0,
    )


@dataclass(kw_only=True)
class TaggedChatBatch(ChatBatch):
    """Batch with the inputs of the agreement, None if it is not used.

    `said_NL` (bool) marks the tokens of a candidate's statement, `spoken_of_NR` (float) gives the picture tokens'
    shares in its subject.
    """

    said_NL: torch.Tensor | None = None
    spoken_of_NR: torch.Tensor | None = None


@dataclass(kw_only=True)
class AgreedAnswers(Answered):
    """Likelihoods plus `agreement_NK`."""

    agreement_NK: torch.Tensor

    @property
    def scores(self) -> torch.Tensor:
        return super().scores + self.agreement_NK


def agreement(
    text_NLH: torch.Tensor, said_NL: torch.Tensor, visual_NRH: torch.Tensor, place_NR: torch.Tensor
) -> torch.Tensor:
    """Return (N,) cosines of the mean states of the statement and of its subject; 0 if either is empty.

    Args:
        said_NL: bool, the tokens of the statement.
        place_NR: float, shares of the picture's tokens in the subject of the text.
    """
    share_NL = said_NL.float() / said_NL.sum(1, keepdim=True).clamp(min=1)
    said_NH = torch.einsum("nl,nlh->nh", share_NL, text_NLH.float())
    shown_NH = torch.einsum("nr,nrh->nh", place_NR.float(), visual_NRH.float())
    return functional.cosine_similarity(said_NH, shown_NH, dim=-1)


def meant_tokens(candidates: Sequence[Candidate], char_spans_NL2: torch.Tensor) -> torch.Tensor:
    """Return (N, L) bool: the tokens of each answer's content words, or of all its words if it has none."""
    said_NL = torch.zeros(char_spans_NL2.shape[:2], dtype=torch.bool)
    start_NL, end_NL = char_spans_NL2.unbind(2)
    for row, candidate in enumerate(candidates):
        words = [span for span in word_spans(candidate.text) if span[0] >= candidate.answer_start]
        meant = [span for span in words if not is_function_word(candidate.text[slice(*span)].lower())]
        for first, last in meant or words:
            said_NL[row] |= (start_NL[row] < last) & (end_NL[row] > first)
    return said_NL


class ScenesSmolVlm(GenerativeStudent):
    """A small SmolVLM over the tagged things of scenes."""

    config: ScenesSmolVlmConfig
    config_class: ClassVar[type[GenerativeConfig]] = ScenesSmolVlmConfig
    places = "regions"
    # After 500 steps it has memorised the pictures of its captions.
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

    def __init__(self, name: str, config: ScenesSmolVlmConfig) -> None:
        super().__init__(name, config)
        self.lora = None
        self.regions = CropRegions(int(self.model.config.vision_config.image_size))

    def read_picture(self, unit: ImageUnit) -> Picture:
        crops = torch.from_numpy(self.regions.crops(unit)).permute(0, 3, 1, 2)
        places_R4 = box_positions(unit)[:, :4]
        places_R4[0] = np.nan
        return Picture(text=self.processor.image_token, runs=(len(crops),), pixels=crops, places_R4=places_R4)

    def tags(self, candidate: Candidate, row: ChatRow) -> npt.NDArray[np.int64]:
        starts_S, ends_S = row.spans_S2.T
        tag_S = super().tags(candidate, row)
        for tag in candidate.tags:
            # Boxes follow the full picture in dataset order.
            if tag.box + 1 < row.is_picture_S.sum():
                tag_S[(starts_S >= tag.start) & (ends_S <= tag.end) & (ends_S > starts_S)] = tag.box + 1
        return tag_S

    def collate(self, examples: Sequence[Example]) -> TaggedChatBatch:
        batch = super().collate(examples)
        box_R = torch.arange(batch.visual_mask_NR.shape[1]) - 1
        batch = dataclasses.replace(batch, box_index_NR=box_R.where(batch.visual_mask_NR, -1))
        if not self.config.agreement or examples[0].task not in MULTIPLE_CHOICE_TASKS:
            return TaggedChatBatch(**vars(batch))
        candidates = [candidate for example in examples for candidate in example.candidates]
        # Padding points to the template's first token, which has no tag either.
        tag_NL = batch.tag_NS.gather(1, batch.text_place_NL)
        shown_NR1 = batch.visual_mask_NR[..., None].float()
        return TaggedChatBatch(
            **vars(batch),
            said_NL=meant_tokens(candidates, batch.char_spans_NL2),
            spoken_of_NR=place_of_tags(shares_of_tags(tag_NL, shown_NR1), hidden=False),
        )

    def embed(self, batch: ChatBatch, shown_MDH: torch.Tensor, *, mask_visual: bool = False) -> torch.Tensor:
        x_BWH = functional.dropout(super().embed(batch, shown_MDH), self.config.dropout, self.training)
        if mask_visual:
            return x_BWH
        shown_BR = batch.visual_place_NR.index_select(0, batch.first_B)
        tag_BW = batch.packing.packed(batch.tag_NS)
        tagged_BW = shown_BR.gather(1, tag_BW.clamp(min=0))
        tagged_BWH = x_BWH.gather(1, tagged_BW[..., None].expand_as(x_BWH))
        return x_BWH + tagged_BWH * (tag_BW >= 0)[..., None]

    def answered(self, batch: ChatBatch, mask_visual: bool) -> Answered | None:
        answered = super().answered(batch, mask_visual)
        assert isinstance(batch, TaggedChatBatch)
        if answered is None or batch.said_NL is None or batch.spoken_of_NR is None or mask_visual:
            return answered
        apart = self.encode_unimodal(batch)
        cosine_N = agreement(apart.text_states_NLH, batch.said_NL, apart.visual_states_NRH, batch.spoken_of_NR)
        return AgreedAnswers(**vars(answered), agreement_NK=cosine_N[:, None] / self.config.agreement)

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.model.get_input_embeddings(), self.processor.tokenizer.convert_tokens_to_ids("[MASK]")


build = builder(ScenesSmolVlm)
