"""VisualBERT as a student: single stream, regions placed at the words that name them.

Embeddings and key names are transformers' `VisualBertEmbeddings`; the encoder is `BertEncoder`, whose arithmetic and
names are the same and which runs over real tokens only (`single_stream.py`). VQA reads the [MASK] after the question,
other tasks the pooled [CLS]. Regions have visual type 0, as in the original (examples elsewhere use 1).

Shapes: N sequences, L text tokens, R regions, A words aligned to a region, S = L + R, H width, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import VisualBertConfig as HfVisualBertConfig
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler
from transformers.models.visual_bert.modeling_visual_bert import VisualBertEmbeddings

from advl_pipeline.datasets.records import Example
from advl_pipeline.students.bert_parts import bert_config, initialise_bert, kinds_of
from advl_pipeline.students.building import builder
from advl_pipeline.students.checkpoints import KeyRules
from advl_pipeline.students.interface import Perturbation, StudentBatch, StudentOutput
from advl_pipeline.students.region_student import TINY_REGIONS, RegionBatch, RegionStudent, RegionStudentConfig
from advl_pipeline.students.single_stream import ATTENTION, run_layers
from advl_pipeline.students.text_rows import Part, TextRow, text_length
from advl_pipeline.students.vl_bert import pool

HEAD_DROPOUT = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class VisualBertConfig(RegionStudentConfig):
    """Architecture of VisualBERT; the defaults are those of its VQA checkpoints (2048-wide features)."""

    max_text_length: int = text_length(128)


@dataclass(kw_only=True)
class VisualBertBatch(RegionBatch):
    """Adds `alignment_NRA` (int64): positions of the words that name a region, -1 for none."""

    alignment_NRA: torch.Tensor


class VisualBertModel(nn.Module):
    """Embeddings, encoder and pooler, under transformers' names."""

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__()
        bert = bert_config(**config.bert_sizes, attention=ATTENTION)
        self.embeddings = VisualBertEmbeddings(
            HfVisualBertConfig(
                **config.transformers_sizes, visual_embedding_dim=config.feature_size, layer_norm_eps=1e-12
            )
        )
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
        """Return (N, L + R, H). A region's position: the mean of its words' rows plus row 0 of its own table."""
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


class VisualBert(RegionStudent):
    """The student. State names are transformers' behind `model.`."""

    config: VisualBertConfig
    compile_refusal = ""
    config_class: ClassVar[type[VisualBertConfig]] = VisualBertConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "visualbert": {},
        "visualbert-vcr": {"feature_size": 512},
        "visualbert-tiny": TINY_REGIONS,
    }
    rules: ClassVar[KeyRules] = KeyRules(
        rename=(
            (r"^(?:visual_bert|bert)\.", "model."),
            (r"token_type_embeddings_visual", "visual_token_type_embeddings"),
            (r"position_embeddings_visual", "visual_position_embeddings"),
            (r"embeddings\.projection\.", "embeddings.visual_projection."),
        ),
        ignore=(r"^(cls|classifier|flickr_attention|attention)\.", r"position_ids$"),
        optional=(r"^model\.pooler\.",),
    )

    def __init__(self, name: str, config: VisualBertConfig) -> None:
        super().__init__(name, config)
        self.model = VisualBertModel(config)

    def lay_out(self, parts: list[Part], task: str) -> TextRow:
        """`[CLS] q [SEP] a [SEP]`; question and answer of QA->R are one part; VQA is `[CLS] q [MASK] [SEP]`."""
        row = TextRow()
        row.add_special(self.tokenizer.cls_id)
        *context, answer = parts
        for part in context or [answer]:
            row.add_part(part)
        if not context and task == "vqa":
            row.pool_index = len(row.token_ids)
            row.add_special(self.tokenizer.mask_id)
        row.add_special(self.tokenizer.sep_id)
        if context:
            row.add_part(answer, 1)
            row.add_special(self.tokenizer.sep_id, 1)
        return row

    def collate(self, examples: Sequence[Example]) -> VisualBertBatch:
        batch = super().collate(examples)
        candidates = [candidate for example in examples for candidate in example.candidates]
        found: dict[tuple[int, int], list[int]] = {}
        for row, candidate in enumerate(candidates):
            starts, ends = batch.char_spans_NL2[row].unbind(-1)
            for tag in candidate.tags:
                inside = (starts >= tag.start) & (ends <= tag.end) & (ends > starts)
                for region in (batch.box_index_NR[row] == tag.box).nonzero()[:, 0].tolist():
                    found.setdefault((row, region), []).extend(inside.nonzero()[:, 0].tolist())
        width = max([1, *(len(words) for words in found.values())])
        alignment = torch.full((*batch.visual_mask_NR.shape, width), -1)
        for (row, region), words in found.items():
            alignment[row, region, : len(words)] = torch.tensor(words, dtype=torch.long)
        return VisualBertBatch(**vars(batch), alignment_NRA=alignment)

    def kinds(self, text_mask_NL: torch.Tensor, visual_mask_NR: torch.Tensor) -> torch.Tensor:
        return kinds_of(text_mask_NL, visual_mask_NR)

    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        assert isinstance(batch, VisualBertBatch)
        delta = perturbation or Perturbation()
        words_NLH = delta.of_words(self.model.embeddings.word_embeddings(batch.token_ids_NL))
        features_NRF = delta.of_features(batch.per_sequence(batch.features_BRF))
        # Which words name a region is knowledge of the text, so it is hidden together with it.
        alignment = torch.full_like(batch.alignment_NRA, -1) if mask_visual else batch.alignment_NRA
        x_NSH = self.model.embed(words_NLH, batch.types_NL, features_NRF, alignment)
        num_text = batch.token_ids_NL.shape[1]
        x_NSH, relevance = run_layers(
            self.model.encoder.layer,
            x_NSH,
            self.kinds(batch.token_mask_NL, batch.visual_mask_NR),
            num_text=num_text,
            grid=batch.grid,
            separate=mask_visual,
            need_relevance=need_relevance,
        )
        text_NLH, visual_NRH = x_NSH[:, :num_text], x_NSH[:, num_text:]
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=visual_NRH,
            pooled_NP=pool(text_NLH, batch.pool_index_N, self.model.pooler),
            image_state_NH=visual_NRH[:, 0] if batch.whole_first else None,
            relevance_NL=relevance,
        )

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        head = nn.Sequential(nn.Dropout(HEAD_DROPOUT), nn.Linear(self.hidden_size, num_classes))
        initialise_bert(head)
        return head

    @staticmethod
    def head_rules(task: str) -> KeyRules:
        """Return the rules that take a task's head out of an original checkpoint."""
        return KeyRules(
            rename=((r"^(?:classifier|cls)\.", "1."),), ignore=(r"^(?!classifier\.|cls\.(weight|bias)$)",)
        )


build = builder(VisualBert)
