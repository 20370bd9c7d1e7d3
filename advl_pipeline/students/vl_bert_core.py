"""VL-BERT's arithmetic: every text token also carries a visual embedding, every object a linguistic one.

Follows jackroos/VL-BERT 4373674, `common/visual_linguistic_bert.py`; keys are those of the original files. The
original packs text, objects and [END] without gaps; here they keep their columns and gaps are skipped
(`single_stream.py`), which gives the same states because positions are explicit.

Shapes: N sequences, L text tokens, R objects, S = L + R + 1 positions, H width, F feature width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler

from advl_pipeline.students.bert_parts import bert_config, initialise_bert
from advl_pipeline.students.single_stream import ATTENTION

OBJECT_TYPE = 2
COORDINATE_SIZE = 2048
_FREQUENCIES = 256


class VlBertModel(nn.Module):
    """Embeddings, encoder and pooler."""

    def __init__(self, *, visual_scale_init: float, **sizes: Any) -> None:
        """Args:
        visual_scale_init: of the norms of visual embeddings.
        sizes: as `bert_config` takes them.
        """
        super().__init__()
        config = bert_config(**sizes, attention=ATTENTION)
        hidden_size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden_size)
        self.end_embedding = nn.Embedding(1, hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden_size)
        self.token_type_embeddings = nn.Embedding(3, hidden_size)
        self.embedding_LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.embedding_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.visual_ln_text = nn.LayerNorm(hidden_size, eps=1e-12)
        self.visual_ln_object = nn.LayerNorm(hidden_size, eps=1e-12)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        initialise_bert(self)
        nn.init.constant_(self.visual_ln_text.weight, visual_scale_init)
        nn.init.constant_(self.visual_ln_object.weight, visual_scale_init)

    def embed(
        self,
        words_NLH: torch.Tensor,
        types_NL: torch.Tensor,
        text_visual_NLH: torch.Tensor,
        object_visual_NRH: torch.Tensor,
        object_linguistic_H: torch.Tensor,
        text_lengths_N: torch.Tensor,
    ) -> torch.Tensor:
        """Return (N, S, H): text, objects, [END]. All objects share the position after the text, [END] has the next.

        Args:
            types_NL: 0 or 1.
            text_visual_NLH: what each text token sees, before its norm.
            object_visual_NRH: object representations, before their norm.
            object_linguistic_H: the one linguistic embedding of objects.
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
    """Return (..., R, 2048): sine and cosine of centre, width and height of each box.

    Args:
        corners_NR4: x1, y1, x2, y2 as shares of the picture. The four quantities are in percent, divided by
            1000 ** (i / 256) for i = 0 ... 255.
    """
    x1, y1, x2, y2 = corners_NR4.unbind(-1)
    percent = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1) * 100
    powers = torch.arange(_FREQUENCIES, device=corners_NR4.device, dtype=corners_NR4.dtype) / _FREQUENCIES
    angles = percent[..., None] / 1000**powers
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class ObjectDownsample(nn.Module):
    """Linear over [coordinate embedding, feature], then ReLU; the original calls the layer `obj_downsample.1`."""

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
    """Return (N, L, H): the representation of the object that each token refers to (0 is the whole picture)."""
    return reps_NRH.gather(1, tags_NL[..., None].expand(-1, -1, reps_NRH.shape[-1]))
