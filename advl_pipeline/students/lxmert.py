"""LXMERT as a student, with transformers' `LxmertModel`: two streams with cross-attention in the last layers.

Shapes: N sequences, L text tokens, R regions, H width, F feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import LxmertConfig as HfLxmertConfig
from transformers import LxmertModel

from advl_pipeline.base.configuration import option
from advl_pipeline.students.bert_parts import compute_dtype, padding_bias, widening_head
from advl_pipeline.students.checkpoints import KeyRules, published_keys, rules_below
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.presets import library_config
from advl_pipeline.students.region_student import RegionBatch, RegionStudent, RegionStudentConfig
from advl_pipeline.students.text_student import States, TwoStreams

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PRETRAINING_ANSWERS = {"grey": "gray", **{word: str(value) for value, word in enumerate(NUMBERS, start=1)}}
"""Answers with another spelling in LXMERT's pretraining."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LxmertConfig(RegionStudentConfig):
    """Architecture of LXMERT; `num_layers` counts the language layers."""

    num_relation_layers: int = option(5, help="Layers over the regions only.", minimum=1)
    num_cross_layers: int = option(5, help="Layers in which the streams meet.", minimum=1)


class Lxmert(TwoStreams[RegionBatch], RegionStudent):
    """LXMERT as a student. State names are transformers' with the prefix `model.`."""

    config: LxmertConfig
    config_class: ClassVar[type[LxmertConfig]] = LxmertConfig
    rules: ClassVar[KeyRules] = published_keys("lxmert")

    def __init__(self, name: str, config: LxmertConfig) -> None:
        super().__init__(name, config)
        self.model = LxmertModel(library_config(HfLxmertConfig, config))

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return widening_head(self.hidden_size, num_classes)

    @classmethod
    def head_rules(cls, kind: str) -> KeyRules:
        return rules_below(r"(?:answer_head\.)?logit_fc")

    @staticmethod
    def pretraining_answer(answer: str) -> str:
        """Return an answer in the spelling of LXMERT's pretraining (`src/pretrain/qa_answer_table.py`)."""
        written = answer.lower().removesuffix(".").strip()
        for article in ("a ", "an ", "the "):
            written = written.removeprefix(article).strip()
        return PRETRAINING_ANSWERS.get(written, written)

    def lower_text(self, batch: RegionBatch, delta: Perturbation) -> States:
        """Return the states of the language layers."""
        words_NLH = delta.of_words(self.model.embeddings.word_embeddings(batch.token_ids_NL))
        text_NLH: torch.Tensor = self.model.embeddings(None, batch.types_NL, words_NLH)
        for layer in self.model.encoder.layer:
            text_NLH = layer(text_NLH, padding_bias(batch.token_mask_NL, compute_dtype(text_NLH)))[0]
        return (text_NLH,)

    def lower_picture(self, batch: RegionBatch, delta: Perturbation) -> States:
        """Return the states of the relation layers."""
        features_NRF = delta.of_features(batch.per_sequence(batch.features_BRF))
        positions_NR4 = batch.per_sequence(batch.positions_BR7)[..., :4]
        visual_NRH: torch.Tensor = self.model.encoder.visn_fc(features_NRF, positions_NR4)
        for layer in self.model.encoder.r_layers:
            visual_NRH = layer(visual_NRH, padding_bias(batch.visual_mask_NR, compute_dtype(visual_NRH)))[0]
        return (visual_NRH,)

    def cross(self, batch: RegionBatch, texts: States, pictures: States) -> tuple[torch.Tensor, torch.Tensor]:
        text_NLH, visual_NRH = texts[-1], pictures[-1]
        dtype = compute_dtype(text_NLH)
        biases = padding_bias(batch.token_mask_NL, dtype), padding_bias(batch.visual_mask_NR, dtype)
        for layer in self.model.encoder.x_layers:
            text_NLH, visual_NRH = layer(text_NLH, biases[0], visual_NRH, biases[1])[:2]
        return text_NLH, visual_NRH

    def pool(self, text_NLH: torch.Tensor, picture_NRH: torch.Tensor | None) -> torch.Tensor:
        pooled_NH: torch.Tensor = self.model.pooler(text_NLH)
        return pooled_NH
