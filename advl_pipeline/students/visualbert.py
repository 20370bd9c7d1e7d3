"""VisualBERT as a student: single stream, with regions at the positions of the words that name them.

Embeddings and key names are those of transformers' `VisualBertEmbeddings`. The encoder is `BertEncoder`, with the
same arithmetic and names, and runs without padding (`bert_parts.py`). VQA reads the [MASK] after the question. Other
tasks read the pooled [CLS]. Regions have visual type 0, as in the original (examples elsewhere use 1).

Shapes: N sequences, L text tokens, R regions, A words aligned to a region, S = L + R, H width, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from transformers import VisualBertConfig
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler
from transformers.models.visual_bert.modeling_visual_bert import VisualBertEmbeddings

from advl_pipeline.datasets.records import Example
from advl_pipeline.students.bert_parts import bert_config, initialise_bert, named_or_pooled
from advl_pipeline.students.checkpoints import KeyRules, published_keys
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.presets import library_config
from advl_pipeline.students.region_student import (
    RegionBatch,
    RegionStream,
    RegionStudentConfig,
    regions_of_box,
    tags_in,
)
from advl_pipeline.students.text_student import TextRow, pair_row
from advl_pipeline.students.tokenizer import TokenPart

HEAD_DROPOUT = 0.1


class VisualBertModel(nn.Module):
    """Embeddings, encoder and pooler, with transformers' names."""

    def __init__(self, config: RegionStudentConfig) -> None:
        super().__init__()
        bert = bert_config(config)
        self.config = library_config(VisualBertConfig, config)
        self.embeddings = VisualBertEmbeddings(self.config)
        self.encoder = BertEncoder(bert)
        self.pooler = BertPooler(bert)
        initialise_bert(self)

    def embed(
        self,
        words_NLH: torch.Tensor,
        types_NL: torch.Tensor,
        features_NRF: torch.Tensor,
        alignment_NRA: torch.Tensor,
    ) -> torch.Tensor:
        """Embed text and regions, (N, L + R, H).

        A region's position is the mean of its words' position embeddings plus row 0 of the visual ones.
        """
        parts = self.embeddings
        positions_LH = parts.position_embeddings.weight[: words_NLH.shape[1]]
        text_NLH = words_NLH + parts.token_type_embeddings(types_NL) + positions_LH
        aligned = (alignment_NRA >= 0).to(words_NLH.dtype)[..., None]
        word_positions = (parts.position_embeddings(alignment_NRA.clamp(min=0)) * aligned).sum(2)
        word_positions = word_positions / aligned.sum(2).clamp(min=1)
        visual_NRH = parts.visual_projection(features_NRF) + word_positions
        visual_NRH = visual_NRH + parts.visual_position_embeddings.weight[0]
        visual_NRH = visual_NRH + parts.visual_token_type_embeddings.weight[0]
        embedded: torch.Tensor = parts.dropout(parts.LayerNorm(torch.cat([text_NLH, visual_NRH], dim=1)))
        return embedded


class VisualBert(RegionStream):
    """VisualBERT as a student. State names are transformers' with the prefix `model.`."""

    config: RegionStudentConfig
    config_class: ClassVar[type[RegionStudentConfig]] = RegionStudentConfig
    rules: ClassVar[KeyRules] = published_keys("visualbert")

    def __init__(self, name: str, config: RegionStudentConfig) -> None:
        super().__init__(name, config)
        self.model = VisualBertModel(config)

    def lay_out(self, parts: list[TokenPart], kind: str) -> TextRow:
        """Return `[CLS] q [SEP] a [SEP]`, or `[CLS] q [MASK] [SEP]` for open answers."""
        return pair_row(parts, self.tokenizer, masked=kind == "answers")

    def collate(self, examples: Sequence[Example]) -> RegionBatch:
        batch: RegionBatch = super().collate(examples)
        region_words: dict[tuple[int, int], list[int]] = {}
        for row, tokens_L, box in tags_in(batch, examples):
            for region in regions_of_box(batch, row, box).tolist():
                region_words.setdefault((row, region), []).extend(tokens_L.nonzero()[:, 0].tolist())
        width = max([1, *(len(words) for words in region_words.values())])
        alignment = torch.full((*batch.visual_mask_NR.shape, width), -1)
        for (row, region), words in region_words.items():
            alignment[row, region, : len(words)] = torch.tensor(words, dtype=torch.long)
        batch.alignment_NRA = alignment
        return batch

    def embed(self, batch: RegionBatch, delta: Perturbation, *, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        words_NLH = delta.of_words(self.model.embeddings.word_embeddings(batch.token_ids_NL))
        features_NRF = delta.of_features(batch.per_sequence(batch.features_BRF))
        assert batch.alignment_NRA is not None
        # The alignment of words and regions depends on the text, so it is hidden together with it.
        alignment = torch.full_like(batch.alignment_NRA, -1) if hidden else batch.alignment_NRA
        x_NSH = self.model.embed(words_NLH, batch.types_NL, features_NRF, alignment)
        num_text = batch.token_ids_NL.shape[1]
        return x_NSH[:, :num_text], x_NSH[:, num_text:]

    def pool(self, text_NLH: torch.Tensor, batch: RegionBatch) -> torch.Tensor:
        return named_or_pooled(text_NLH, batch.pool_index_N, self.model.pooler)

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        head = nn.Sequential(nn.Dropout(HEAD_DROPOUT), nn.Linear(self.hidden_size, num_classes))
        initialise_bert(head)
        return head

    @classmethod
    def head_rules(cls, kind: str) -> KeyRules:
        return KeyRules(
            rename=((r"^(?:classifier|cls)\.", "1."),), ignore=(r"^(?!classifier\.|cls\.(weight|bias)$)",)
        )
