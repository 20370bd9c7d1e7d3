"""METER's cross-modal stack: two streams, each attending to itself and to the other's previous state.

Layers are transformers' `BridgeTowerBertCrossLayer`, the same code under the same names. Follows zdou0830/METER
f4f0934, `meter/modules/meter_module.py`.

OpenAI CLIP's names for its vision transformer, as METER's checkpoints keep them, become transformers' names. Renaming
alone does not do: OpenAI's attention holds query, key and value in one matrix.

Shapes: N sequences, L text tokens, R visual tokens, H width, D and E widths of the text and vision encoders.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import BridgeTowerTextConfig
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from advl_pipeline.students.bert_parts import bert_config, compute_dtype, initialise_bert, padding_bias

TEXT_STREAM, IMAGE_STREAM = 0, 1


class CrossModalStack(nn.Module):
    """Transforms, modality embeddings, layers and poolers; names as in the original's files."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        text_size: int,
        image_size: int,
        dropout: float,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        config = BridgeTowerTextConfig(
            hidden_size=hidden_size,
            num_attention_heads=num_heads,
            intermediate_size=intermediate_size,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            layer_norm_eps=layer_norm_eps,
        )
        # Masks are always explicit below: without one, SDPA would take the layers' causal flag at its word.
        config._attn_implementation = "sdpa"
        self.cross_modal_text_transform = nn.Linear(text_size, hidden_size)
        self.cross_modal_image_transform = nn.Linear(image_size, hidden_size)
        self.token_type_embeddings = nn.Embedding(2, hidden_size)
        self.cross_modal_image_layers = nn.ModuleList(BridgeTowerBertCrossLayer(config) for _ in range(num_layers))
        self.cross_modal_text_layers = nn.ModuleList(BridgeTowerBertCrossLayer(config) for _ in range(num_layers))
        pooler_config = bert_config(
            hidden_size=hidden_size, num_layers=1, num_heads=num_heads, intermediate_size=intermediate_size
        )
        self.cross_modal_image_pooler = BertPooler(pooler_config)
        self.cross_modal_text_pooler = BertPooler(pooler_config)
        initialise_bert(self)

    def transform(self, text_NLD: torch.Tensor, image_NRE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what enters the first layer, (N, L, H) and (N, R, H): neither has seen the other."""
        types = self.token_type_embeddings.weight
        text_NLH: torch.Tensor = self.cross_modal_text_transform(text_NLD) + types[TEXT_STREAM]
        image_NRH: torch.Tensor = self.cross_modal_image_transform(image_NRE) + types[IMAGE_STREAM]
        return text_NLH, image_NRH

    def forward(
        self, text_NLD: torch.Tensor, image_NRE: torch.Tensor, text_mask_NL: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Return text states and image states after each layer, and the pooled pair (N, 2H), text first."""
        text, image = self.transform(text_NLD, image_NRE)
        text_bias = padding_bias(text_mask_NL.bool(), compute_dtype(text))
        image_bias = image.new_zeros(image.shape[0], 1, 1, image.shape[1])
        texts, images = [], []
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            text, image = (
                text_layer(text, image, attention_mask=text_bias, encoder_attention_mask=image_bias)[0],
                image_layer(image, text, attention_mask=image_bias, encoder_attention_mask=text_bias)[0],
            )
            texts.append(text)
            images.append(image)
        pooled = torch.cat([self.cross_modal_text_pooler(text), self.cross_modal_image_pooler(image)], dim=-1)
        return texts, images, pooled


RENAMES: tuple[tuple[str, str], ...] = (
    (r"\.conv1\.weight$", ".embeddings.patch_embedding.weight"),
    (r"\.class_embedding$", ".embeddings.class_embedding"),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"\.ln_pre\.", ".pre_layrnorm."),
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.transformer\.resblocks\.", ".encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""(regular expression, replacement), in order; the part before the vision transformer's own names is left alone."""

_IN_PROJECTION = re.compile(r"^(.*\.attn\.)in_proj_(weight|bias)$")


def split_in_projections(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with each joint (3H, ...) projection as `q_proj`, `k_proj` and `v_proj`."""
    split: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        match = _IN_PROJECTION.match(name)
        if match is None:
            split[name] = value
            continue
        for letter, piece in zip("qkv", value.chunk(3), strict=True):
            split[f"{match[1]}{letter}_proj.{match[2]}"] = piece.contiguous()
    return split
