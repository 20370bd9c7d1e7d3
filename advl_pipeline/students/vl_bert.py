"""VL-BERT as a student over precomputed region features, without the end-to-end detector of its VCR variant.

Every text token also has a visual embedding, and every object a linguistic one. Follows jackroos/VL-BERT 4373674,
`common/visual_linguistic_bert.py`; keys are those of the original files. The original packs text, objects and [END]
without gaps. Here they keep their columns and gaps are skipped (`bert_parts.py`), which gives the same states because
positions are explicit. VQA reads the state of a [MASK] after the question, through BERT's masked-word transform.
Other tasks read the pooled [CLS].

Shapes: N sequences, L text tokens, R objects, S = L + R + 1 positions, H width, F feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler, BertPredictionHeadTransform

from advl_pipeline.base.configuration import option
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.students.bert_parts import bert_config, initialise_bert, named_or_pooled, token_kinds
from advl_pipeline.students.checkpoints import KeyRules, published_keys, rules_below
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.picture_source import Regions, with_whole_picture
from advl_pipeline.students.region_student import RegionBatch, RegionStream, RegionStudentConfig
from advl_pipeline.students.text_student import TextBatch, TextRow
from advl_pipeline.students.tokenizer import TokenPart

OBJECT_TYPE = 2
COORDINATE_SIZE = 2048
_FREQUENCIES = 256


class VlBertModel(nn.Module):
    """Embeddings, encoder and pooler of VL-BERT."""

    def __init__(self, config: VlBertConfig) -> None:
        super().__init__()
        bert, hidden_size = bert_config(config), config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden_size)
        self.end_embedding = nn.Embedding(1, hidden_size)
        self.position_embeddings = nn.Embedding(config.max_positions, hidden_size)
        self.token_type_embeddings = nn.Embedding(3, hidden_size)
        self.embedding_LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.visual_ln_text = nn.LayerNorm(hidden_size, eps=1e-12)
        self.visual_ln_object = nn.LayerNorm(hidden_size, eps=1e-12)
        self.encoder = BertEncoder(bert)
        self.pooler = BertPooler(bert)
        initialise_bert(self)
        nn.init.constant_(self.visual_ln_text.weight, config.visual_scale_init)
        nn.init.constant_(self.visual_ln_object.weight, config.visual_scale_init)

    def embed(
        self,
        words_NLH: torch.Tensor,
        types_NL: torch.Tensor,
        text_visual_NLH: torch.Tensor,
        object_visual_NRH: torch.Tensor,
        object_linguistic_H: torch.Tensor,
        text_lengths_N: torch.Tensor,
    ) -> torch.Tensor:
        """Embed text, objects and [END], (N, S, H). Objects share the position after the text; [END] has the next.

        Args:
            types_NL: 0 or 1.
            text_visual_NLH: visual embeddings of text tokens, before their norm.
            object_visual_NRH: object representations, before their norm.
            object_linguistic_H: the linguistic embedding shared by all objects.
        """
        num_text, num_objects = words_NLH.shape[1], object_visual_NRH.shape[1]
        text_NLH = words_NLH + self.visual_ln_text(text_visual_NLH)
        objects_NRH = object_linguistic_H + self.visual_ln_object(object_visual_NRH)
        end_N1H = self.end_embedding.weight[None].expand(words_NLH.shape[0], 1, -1)
        text_positions = torch.arange(num_text, device=words_NLH.device).expand(words_NLH.shape[0], -1)
        object_positions = text_lengths_N[:, None].expand(-1, num_objects)
        positions_NS = torch.cat([text_positions, object_positions, text_lengths_N[:, None] + 1], dim=1)
        types_NS = nn.functional.pad(types_NL, (0, num_objects + 1), value=OBJECT_TYPE)
        x_NSH = torch.cat([text_NLH, objects_NRH, end_N1H], dim=1)
        x_NSH = x_NSH + self.position_embeddings(positions_NS) + self.token_type_embeddings(types_NS)
        embedded: torch.Tensor = self.embedding_dropout(self.embedding_LayerNorm(x_NSH))
        return embedded


def coordinate_embedding(corners_NR4: torch.Tensor) -> torch.Tensor:
    """Return sine and cosine embeddings of centre, width and height of each box, (..., R, 2048).

    Args:
        corners_NR4: x1, y1, x2, y2 as fractions of the picture. The four quantities are in percent, divided by
            1000 ** (i / 256) for i = 0 ... 255.
    """
    x1, y1, x2, y2 = corners_NR4.unbind(-1)
    percent = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1) * 100
    powers = torch.arange(_FREQUENCIES, device=corners_NR4.device, dtype=corners_NR4.dtype) / _FREQUENCIES
    angles = percent[..., None] / 1000**powers
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class ObjectDownsample(nn.Module):
    """Linear and ReLU over [coordinate embedding, feature]; the original names the layer `obj_downsample.1`."""

    def __init__(self, hidden_size: int, feature_size: int, dropout: float) -> None:
        super().__init__()
        self.obj_downsample = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(COORDINATE_SIZE + feature_size, hidden_size), nn.ReLU()
        )

    def forward(self, features_NRF: torch.Tensor, corners_NR4: torch.Tensor) -> torch.Tensor:
        """Return object representations (N, R, H)."""
        joined = torch.cat([coordinate_embedding(corners_NR4), features_NRF], dim=-1)
        reps: torch.Tensor = self.obj_downsample(joined)
        return reps


def collect_objects(tags_NL: torch.Tensor, reps_NRH: torch.Tensor) -> torch.Tensor:
    """Gather the object that each token refers to, (N, L, H); object 0 is the whole picture."""
    return reps_NRH.gather(1, tags_NL[..., None].expand(-1, -1, reps_NRH.shape[-1]))


CLASSIFIER_DROPOUT = 0.1

EMPTY_TEXT_LENGTH = 2
"""Number of tokens of an empty text: [CLS] and [SEP]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VlBertConfig(RegionStudentConfig):
    """Architecture of VL-BERT."""

    visual_scale_init: float = option(0.0, help="Initial weight of the norms of visual embeddings.", minimum=0)


class VlBert(RegionStream):
    """VL-BERT as a student. State names are the original's, without `_module.`."""

    config: VlBertConfig
    reads_tags = True
    config_class: ClassVar[type[VlBertConfig]] = VlBertConfig
    rules: ClassVar[KeyRules] = published_keys("vl-bert")

    def __init__(self, name: str, config: VlBertConfig) -> None:
        super().__init__(name, config)
        self.vlbert = VlBertModel(config)
        self.image_feature_extractor = ObjectDownsample(config.hidden_size, config.feature_size, config.dropout)
        self.object_linguistic_embeddings = nn.Embedding(1, config.hidden_size)
        initialise_bert(self.image_feature_extractor)
        initialise_bert(self.object_linguistic_embeddings)

    def lay_out(self, parts: list[TokenPart], kind: str) -> TextRow:
        """Return `[CLS] q [SEP] a [SEP]`, or `[CLS] q [SEP] [MASK] [SEP]` for open answers.

        The q of a rationale includes the answer.
        """
        row = super().lay_out(parts, kind)
        if len(parts) == 1 and kind == "answers":
            row.pool_index = len(row.token_ids)
            row.add_special(self.tokenizer.mask_id, 1)
            row.add_special(self.tokenizer.sep_id, 1)
        return row

    def regions_of(self, unit: ImageUnit) -> Regions:
        return with_whole_picture(super().regions_of(unit))

    def kinds(self, batch: TextBatch) -> torch.Tensor:
        # [END] belongs to the picture, because it ends the list of objects.
        return token_kinds(batch.token_mask_NL, nn.functional.pad(batch.visual_mask_NR, (0, 1), value=True))

    @property
    def fusion_layers(self) -> Sequence[Any]:
        return list(self.vlbert.encoder.layer)

    def embed(self, batch: RegionBatch, delta: Perturbation, *, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the input embeddings of the layers; [END] follows the objects."""
        features = delta.of_features(batch.per_sequence(batch.features_BRF))
        reps_NRH = self.image_feature_extractor(features, batch.per_sequence(batch.positions_BR7)[..., :4])
        assert batch.tags_NL is not None
        # Tokens without an object get the whole picture.
        seen_NLH = collect_objects(batch.tags_NL.clamp(min=0), reps_NRH)
        text_lengths_N = batch.token_mask_NL.sum(1)
        x_NSH = self.vlbert.embed(
            delta.of_words(self.vlbert.word_embeddings(batch.token_ids_NL)),
            batch.types_NL,
            torch.zeros_like(seen_NLH) if hidden else seen_NLH,
            reps_NRH,
            self.object_linguistic_embeddings.weight[0],
            # Objects are placed after the text or, if hidden from it, after an empty text.
            torch.full_like(text_lengths_N, EMPTY_TEXT_LENGTH) if hidden else text_lengths_N,
        )
        num_text = batch.token_ids_NL.shape[1]
        return x_NSH[:, :num_text], x_NSH[:, num_text:]

    def run_layers(
        self, x_NSH: torch.Tensor, batch: TextBatch, **how: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_NSH, relevance_NL = super().run_layers(x_NSH, batch, **how)
        return x_NSH[:, :-1], relevance_NL

    def pool(self, text_NLH: torch.Tensor, batch: RegionBatch) -> torch.Tensor:
        return named_or_pooled(text_NLH, batch.pool_index_N, self.vlbert.pooler)

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return vl_bert_head(kind, self.hidden_size, num_classes)

    @classmethod
    def head_rules(cls, kind: str) -> KeyRules:
        return rules_below("final_mlp")


def vl_bert_head(kind: str, hidden_size: int, num_classes: int) -> nn.Sequential:
    """Return the masked-word transform and classifier for open answers, or a single layer for others."""
    if kind == "answers":
        transform = BertPredictionHeadTransform(BertConfig(hidden_size=hidden_size))
        head = nn.Sequential(transform, nn.Dropout(CLASSIFIER_DROPOUT), nn.Linear(hidden_size, num_classes))
    else:
        head = nn.Sequential(nn.Dropout(CLASSIFIER_DROPOUT), nn.Linear(hidden_size, num_classes))
    for part in head.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return head
