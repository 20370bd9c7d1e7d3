"""OpenAI CLIP's names for its vision transformer, as checkpoints built on it keep them, in transformers' names.

Renaming alone does not do: OpenAI's attention holds query, key and value in one matrix.
"""

from __future__ import annotations

import re

import torch

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
