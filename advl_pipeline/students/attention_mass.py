"""How much each text token of a BERT-family layer looks at the picture.

Shapes: N sequences, T tokens of text and picture together, L text tokens first among them, H width, A heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch


@torch.no_grad()
def attention_mass(self_attention: Any, x_NTH: torch.Tensor, bias: torch.Tensor, num_text: int) -> torch.Tensor:
    """Return (N, L): attention from each text token to the visual tokens, averaged over heads, detached.

    Args:
        self_attention: a transformers `BertSelfAttention` (query, key, num_attention_heads).
        x_NTH: the states that enter the layer.
        bias: additive mask broadcastable to (N, A, T, T).
        num_text: L; the visual tokens are the ones after them.
    """
    num_heads: int = self_attention.num_attention_heads
    num_sequences, num_tokens, width = x_NTH.shape
    shape = (num_sequences, num_tokens, num_heads, width // num_heads)
    query = self_attention.query(x_NTH).view(shape).transpose(1, 2)
    key = self_attention.key(x_NTH).view(shape).transpose(1, 2)
    scores = query[:, :, :num_text] @ key.transpose(-1, -2) / math.sqrt(width // num_heads)
    weights = torch.softmax(scores + (bias[:, :, :num_text] if bias.shape[2] > 1 else bias), dim=-1)
    mass_NL: torch.Tensor = weights[..., num_text:].sum(-1).mean(1)
    return mass_NL
