"""Frozen towers with weights from the package index, and a few fusion layers.

EfficientNet-Lite0 reads the picture and all-MiniLM-L6-v2 the text. They were trained separately, so nothing in them
relates words to pictures. The fusion layers start from random weights and learn this only from the labels. They
read feature maps of four depths of the vision tower, because the last map no longer distinguishes colours well. Every
patch keeps its place.

`WordsEfficientNet` has the same eyes and no language: a vector for each word piece, from random weights. Its match
reads the vectors that the adapt stage relates, so it can use what a text teacher knows.

Shapes: B examples, N sequences, L text tokens, R patches of the grid row by row, H width, D width of the words as
read, T width of the pooled text, F channels of the maps, G pooled features of the picture, S side in pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler

from advl_pipeline.students.bert_parts import bert_config, initialise_bert
from advl_pipeline.students.frozen_towers import TowerStudent, efficientnet_lite0
from advl_pipeline.students.interface import Perturbation, StudentOutput
from advl_pipeline.students.match import AnswerMatchHead, ChoiceMatchHead, MatchStream
from advl_pipeline.students.pixel_student import HALF_MEAN, HALF_STD, PixelBatch, PixelStudent, PixelStudentConfig
from advl_pipeline.students.text_student import BertStream

DEPTHS = (1, 2, 3, 4)
"""Feature maps of the vision tower to read, at 1/4, 1/8, 1/16 and 1/32 of the picture's side."""
TEXT_TOWER = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


class EfficientNetStudent(TowerStudent, MatchStream[PixelBatch], BertStream[PixelBatch], PixelStudent):
    """A student with the vision tower and the fusion layers."""

    config: PixelStudentConfig
    config_class: ClassVar[type[PixelStudentConfig]] = PixelStudentConfig
    towers: ClassVar[tuple[str, ...]] = ("efficientnet-lite0",)
    tower_parts: ClassVar[tuple[str, ...]] = ("vision",)
    pixel_mean, pixel_std = HALF_MEAN, HALF_STD
    num_class_tokens = 0
    reads_first = True
    first_scale: ClassVar[float] = 10.0
    """First factor of the cosine by which a choice is scored."""
    contrastive: ClassVar[bool] = False
    """Whether right texts of questions about other pictures are negatives in the fit of choices."""
    matches_projected: ClassVar[bool] = False
    """Whether the heads match the words as projected for the fusion layers, not as read."""
    vision: Any
    text: Any

    def __init__(self, name: str, config: PixelStudentConfig) -> None:
        super().__init__(name, config)
        self.vision = efficientnet_lite0(num_classes=0)
        width = config.hidden_size
        self.text, word_size = self.build_text()
        self.said_size = width if self.matches_projected else word_size
        num_channels = sum(self.vision.feature_info[depth]["num_chs"] for depth in DEPTHS)
        self.text_projection = nn.Sequential(nn.Linear(word_size, width), nn.LayerNorm(width))
        self.cell_projection = nn.Sequential(
            nn.LayerNorm(num_channels), nn.Linear(num_channels, width), nn.LayerNorm(width)
        )
        self.place_embedding = nn.Embedding(self.num_visual, width)
        bert = bert_config(config)
        self.encoder = BertEncoder(bert)
        self.pooler = BertPooler(bert)
        for part in (self.text_projection, self.cell_projection, self.place_embedding, self.encoder, self.pooler):
            initialise_bert(part)
        self.hold_towers()

    @abstractmethod
    def build_text(self) -> tuple[nn.Module, int]:
        """Return the part that reads the words, and its width D."""

    @abstractmethod
    def read_words(self, batch: PixelBatch) -> torch.Tensor:
        """Return the states of the words, (N, L, D); states of padding are undefined."""

    @property
    def fusion_layers(self) -> Sequence[Any]:
        return list(self.encoder.layer)

    def embed(
        self, batch: PixelBatch, delta: Perturbation, *, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        words_NLD, mask_NL1 = self.read_words(batch), batch.token_mask_NL[..., None]
        text_NLH = self.text_projection(words_NLD)
        shown_BG, patches_BRF = self._seen(batch)
        patches_BRH = self.cell_projection(patches_BRF) + self.place_embedding.weight
        matched_NLT = text_NLH if self.matches_projected else words_NLD
        # As the teacher pools its texts.
        said_NT = matched_NLT.masked_fill(~mask_NL1, 0.0).sum(1) / mask_NL1.sum(1)
        return text_NLH, batch.per_sequence(patches_BRH), said_NT, batch.per_sequence(shown_BG)

    def pool(self, text_NLH: torch.Tensor, batch: PixelBatch) -> torch.Tensor:
        pooled_NH: torch.Tensor = self.pooler(text_NLH)
        return pooled_NH

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        sizes = {
            "text_size": self.said_size,
            "picture_size": self.vision.num_features,
            "pooled_size": self.pooled_size,
        }
        if num_classes == 1:
            return ChoiceMatchHead(**sizes, first_scale=self.first_scale, contrastive=self.contrastive)
        return AnswerMatchHead(**sizes, num_classes=num_classes)

    def _seen(self, batch: PixelBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vision tower's pooled features (B, G), and its maps averaged to patches, (B, R, F)."""
        side = self.config.image_size // self.config.patch_size

        def read(pixels_B3SS: torch.Tensor) -> torch.Tensor:
            pixels_B3SS = pixels_B3SS.contiguous(memory_format=torch.channels_last)
            last_BGhw, maps = self.vision.forward_intermediates(pixels_B3SS, indices=list(DEPTHS))
            grids = [functional.adaptive_avg_pool2d(map_BFhw, side) for map_BFhw in maps]
            patches_BRF = torch.cat(grids, dim=1).flatten(2).transpose(1, 2)
            return torch.cat([self.vision.forward_head(last_BGhw), patches_BRF.flatten(1)], dim=1)

        def read_one(pixels_3SS: torch.Tensor) -> torch.Tensor:
            return read(self.normalised(replace(batch, pixels_B3SS=pixels_3SS[None])))

        if self.keeps_states("vision", batch.pixels_B3SS):
            grid = f"{side} x {side}"
            seen_BX = torch.cat([self.kept("vision", read_one, pixels, read_as=grid) for pixels in batch.pixels_B3SS])
        else:
            seen_BX = self.per_picture(batch, read)
        num_features = self.vision.num_features
        return seen_BX[:, :num_features], seen_BX[:, num_features:].reshape(len(seen_BX), side * side, -1)


class EfficientNetMiniLm(EfficientNetStudent):
    """The student with both towers, whose heads match their pooled states."""

    towers, tower_parts = ("efficientnet-lite0", "minilm-l6"), ("vision", "text")
    # The form that few labels fit to both towers says more than what steps add to it (docs/experiments.md).
    first_scale = 0.3
    contrastive = True

    def build_text(self) -> tuple[nn.Module, int]:
        tower = BertModel(BertConfig(**TEXT_TOWER, attn_implementation="sdpa"), add_pooling_layer=False)
        return tower, TEXT_TOWER["hidden_size"]

    def read_words(self, batch: PixelBatch) -> torch.Tensor:
        ids_NL, types_NL, mask_NL = batch.token_ids_NL, batch.types_NL, batch.token_mask_NL

        def read(ids_NL: torch.Tensor, types_NL: torch.Tensor, mask_NL: torch.Tensor | None = None) -> torch.Tensor:
            states = self.text(input_ids=ids_NL, token_type_ids=types_NL, attention_mask=mask_NL)
            return cast(torch.Tensor, states.last_hidden_state)

        if not self.keeps_states("text", ids_NL):
            return read(ids_NL, types_NL, mask_NL.long())
        text_NLD = torch.zeros(*ids_NL.shape, TEXT_TOWER["hidden_size"], dtype=next(self.parameters()).dtype)
        for row, length in enumerate(mask_NL.sum(1).tolist()):
            ids_1L, types_1L = ids_NL[row : row + 1, :length], types_NL[row : row + 1, :length]
            text_NLD[row, :length] = self.kept("text", read, ids_1L, types_1L)[0]
        return text_NLD


class WordsEfficientNet(EfficientNetStudent):
    """The student without language: word vectors from random weights, whose states before fusion its heads match."""

    matches_projected = True

    def build_text(self) -> tuple[nn.Module, int]:
        table = nn.Embedding(self.config.vocab_size, self.config.hidden_size)
        initialise_bert(table)
        return table, self.config.hidden_size

    def read_words(self, batch: PixelBatch) -> torch.Tensor:
        words_NLD: torch.Tensor = self.text(batch.token_ids_NL)
        return words_NLD

    def encode_unimodal(self, batch: PixelBatch) -> StudentOutput:
        """Return the states that the heads match: random fusion layers would come between them and the teachers."""
        text_NLH, visual_NRH, _, _ = self.embed(batch, Perturbation(), hidden=True)
        pooled_NP = self.pool(text_NLH, batch)
        return StudentOutput(text_states_NLH=text_NLH, visual_states_NRH=visual_NRH, pooled_NP=pooled_NP)
