"""UNITER's arithmetic, BERT over text and regions, and its task heads. Keys are those of the original files.

The encoder is transformers' `BertEncoder`; what differs from BERT (region embeddings) is here. The original packs
text and regions of each sequence without gaps; `single_stream.py` computes no gaps either.
Follows ChenRocks/UNITER 1dbfa62, `model/model.py`.

Shapes: B pictures, N sequences, L text tokens, R regions, S positions, H width, F region feature width,
K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler

from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS
from advl_pipeline.students.bert_parts import bert_config, initialise_bert, widening_head
from advl_pipeline.students.checkpoints import KeyRules
from advl_pipeline.students.single_stream import ATTENTION

Repeat = Callable[[torch.Tensor], torch.Tensor]

REGION_TYPE = 1
"""Token type of regions."""

NUM_POSITION_VALUES = 7
"""x1, y1, x2, y2, width, height and area of a region, as shares of the picture."""


class RegionEmbeddings(nn.Module):
    """LN( LN(W_f feature) + LN(W_p position) + type ), then dropout."""

    def __init__(self, hidden_size: int, feature_size: int, dropout: float) -> None:
        super().__init__()
        self.img_linear = nn.Linear(feature_size, hidden_size)
        self.img_layer_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.pos_layer_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.pos_linear = nn.Linear(NUM_POSITION_VALUES, hidden_size)
        # Row 1 stands for a masked region in pretraining; finetuning never looks it up, the files hold it.
        self.mask_embedding = nn.Embedding(2, feature_size, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        features_BRF: torch.Tensor,
        positions_BR7: torch.Tensor,
        type_H: torch.Tensor,
        repeat: Repeat | None = None,
    ) -> torch.Tensor:
        """Return (B, R, H), or (N, R, H) where `repeat` gives each sequence its picture.

        Candidates of one question share their picture's embedding, but each draws its own dropout.
        """
        feature_BRH = self.img_layer_norm(self.img_linear(features_BRF))
        position_BRH = self.pos_layer_norm(self.pos_linear(positions_BR7))
        embedded: torch.Tensor = self.LayerNorm(feature_BRH + position_BRH + type_H)
        dropped: torch.Tensor = self.dropout(embedded if repeat is None else repeat(embedded))
        return dropped


class UniterModel(nn.Module):
    """Embeddings, encoder and pooler of UNITER (and of VILLA, which differs in training only)."""

    def __init__(self, *, feature_size: int, **sizes: Any) -> None:
        """Args:
        feature_size: width of the region features.
        sizes: as `bert_config` takes them.
        """
        super().__init__()
        config = bert_config(**sizes, attention=ATTENTION)
        self.embeddings = BertEmbeddings(config)
        self.img_embeddings = RegionEmbeddings(config.hidden_size, feature_size, config.hidden_dropout_prob)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        initialise_bert(self)

    def embed_text(
        self,
        token_ids_NL: torch.Tensor,
        *,
        types_NL: torch.Tensor | None = None,
        perturbation_NLH: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (N, L, H). The perturbation is added to the word embedding, before position, type and norm."""
        words_NLH = self.embeddings.word_embeddings(token_ids_NL)
        if perturbation_NLH is not None:
            words_NLH = words_NLH + perturbation_NLH
        embedded: torch.Tensor = self.embeddings(inputs_embeds=words_NLH, token_type_ids=types_NL)
        return embedded

    def embed_regions(
        self,
        features_BRF: torch.Tensor,
        positions_BR7: torch.Tensor,
        *,
        repeat: Repeat | None = None,
        perturbation_NRF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (N, R, H): pictures, repeated for their sequences. The perturbation is added to the raw features."""
        if perturbation_NRF is not None:
            if repeat is not None:
                features_BRF, positions_BR7, repeat = repeat(features_BRF), repeat(positions_BR7), None
            features_BRF = features_BRF + perturbation_NRF
        type_H = self.embeddings.token_type_embeddings.weight[REGION_TYPE]
        embedded: torch.Tensor = self.img_embeddings(features_BRF, positions_BR7, type_H, repeat)
        return embedded

    def layers(self, x_NSH: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the states after each layer, (N, S, H) each."""
        states = []
        for layer in self.encoder.layer:
            x_NSH = layer(x_NSH, bias)
            states.append(x_NSH)
        return tuple(states)


NORM_EPS = 1e-12


class TwoWayChoiceHead(nn.Module):
    """VCR: every candidate gets two logits of its own; the second alone is its score."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.net = widening_head(hidden_size, 2, hidden=2 * hidden_size, activation=nn.ReLU(), eps=NORM_EPS)

    def two_way(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """Return (N, 2) logits: wrong, right."""
        logits: torch.Tensor = self.net(pooled_NH)
        return logits

    def forward(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """Return (N, 1): the score of each candidate."""
        return self.two_way(pooled_NH)[:, 1:]


def uniter_head(task: str, hidden_size: int, num_classes: int) -> nn.Module:
    """Return a fresh head as the original builds it: ReLU and two logits for VCR, GELU elsewhere."""
    if task in MULTIPLE_CHOICE_TASKS or task == "vcr":
        return TwoWayChoiceHead(hidden_size)
    return widening_head(hidden_size, num_classes, hidden=2 * hidden_size, activation=nn.GELU(), eps=NORM_EPS)


def head_rules(task: str) -> KeyRules:
    """Return the rules that take a task's head out of an original checkpoint."""
    if task in MULTIPLE_CHOICE_TASKS or task == "vcr":
        return KeyRules(rename=((r"^vcr_output\.", "net."),), ignore=(r"^(?!vcr_output\.)",))
    # SNLI-VE checkpoints keep their head under VQA's name: the original class derives from VQA's.
    return KeyRules(rename=((r"^vqa_output\.", ""),), ignore=(r"^(?!vqa_output\.)",))
