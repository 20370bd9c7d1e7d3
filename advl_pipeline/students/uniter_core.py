"""UNITER's arithmetic: BERT over text and regions, packed without gaps. Keys are those of the original files.

The encoder is transformers' `BertEncoder`; what differs from BERT (region embeddings, packing) is here.
Follows ChenRocks/UNITER 1dbfa62, `model/model.py`.

Shapes: N sequences, L text tokens, R regions, S packed positions, H width, F region feature width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler

from advl_pipeline.students.bert_parts import bert_config, initialise_bert

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
        self, features_NRF: torch.Tensor, positions_NR7: torch.Tensor, types_NRH: torch.Tensor
    ) -> torch.Tensor:
        """Return (N, R, H)."""
        feature_NRH = self.img_layer_norm(self.img_linear(features_NRF))
        position_NRH = self.pos_layer_norm(self.pos_linear(positions_NR7))
        embedded: torch.Tensor = self.dropout(self.LayerNorm(feature_NRH + position_NRH + types_NRH))
        return embedded


class UniterModel(nn.Module):
    """Embeddings, encoder and pooler of UNITER (and of VILLA, which differs in training only)."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        vocab_size: int,
        max_positions: int,
        num_types: int,
        feature_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        config = bert_config(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=intermediate_size,
            vocab_size=vocab_size,
            max_positions=max_positions,
            num_types=num_types,
            dropout=dropout,
        )
        self.embeddings = BertEmbeddings(config)
        self.img_embeddings = RegionEmbeddings(hidden_size, feature_size, dropout)
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
        features_NRF: torch.Tensor,
        positions_NR7: torch.Tensor,
        *,
        perturbation_NRF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (N, R, H). The perturbation is added to the raw features."""
        if perturbation_NRF is not None:
            features_NRF = features_NRF + perturbation_NRF
        types_H = self.embeddings.token_type_embeddings.weight[REGION_TYPE]
        embedded: torch.Tensor = self.img_embeddings(features_NRF, positions_NR7, types_H)
        return embedded

    def layers(self, x_NSH: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the states after each layer, (N, S, H) each."""
        states = []
        for layer in self.encoder.layer:
            x_NSH = layer(x_NSH, bias)
            states.append(x_NSH)
        return tuple(states)


def gather_index(
    text_lengths_N: torch.Tensor, region_counts_N: torch.Tensor, *, num_text: int, size: int
) -> torch.Tensor:
    """Return (N, S) int64: which column of [text (L), regions (R)] each packed position takes.

    The tail of a shorter sequence points at arbitrary columns, which the mask hides, as in the original.

    Args:
        text_lengths_N: tokens of each sequence.
        region_counts_N: regions of each sequence.
        num_text: L, columns of text before the first region.
        size: S, at least the largest sum of tokens and regions.
    """
    position_S = torch.arange(size, device=text_lengths_N.device)
    past_text_NS = position_S - text_lengths_N[:, None]
    region_NS = torch.minimum(past_text_NS.clamp(min=0), region_counts_N[:, None] - 1)
    return torch.where(past_text_NS < 0, position_S, num_text + region_NS)


def pack(text_NLH: torch.Tensor, regions_NRH: torch.Tensor, index_NS: torch.Tensor) -> torch.Tensor:
    """Return (N, S, H): text and regions of each sequence next to one another."""
    joined = torch.cat([text_NLH, regions_NRH], dim=1)
    return joined.gather(1, index_NS[..., None].expand(-1, -1, joined.shape[-1]))


def unpack(
    x_NSH: torch.Tensor, text_mask_NL: torch.Tensor, visual_mask_NR: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo `pack`: return text states (N, L, H) and visual states (N, R, H), zero at padding."""
    num_text, num_visual, last = text_mask_NL.shape[1], visual_mask_NR.shape[1], x_NSH.shape[1] - 1
    lengths_N1 = text_mask_NL.sum(dim=1, keepdim=True)
    text_index = torch.arange(num_text, device=x_NSH.device).clamp(max=last).expand(x_NSH.shape[0], -1)
    visual_index = (lengths_N1 + torch.arange(num_visual, device=x_NSH.device)).clamp(max=last)
    return (
        _take(x_NSH, text_index) * text_mask_NL[..., None].to(x_NSH.dtype),
        _take(x_NSH, visual_index) * visual_mask_NR[..., None].to(x_NSH.dtype),
    )


def _take(x_NSH: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x_NSH.gather(1, index[..., None].expand(-1, -1, x_NSH.shape[-1]))
