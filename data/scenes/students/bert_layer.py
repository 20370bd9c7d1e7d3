"""A BERT layer, bit-identical to that of transformers and with its names; importing transformers takes too long.

Shapes: N sequences, T tokens, H width, A heads, D size of a head.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.students.bert_parts import RecomputableLayer


class SelfAttention(nn.Module):
    """Self-attention over the tokens of a sequence."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_attention_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NTH: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return (N, T, H)."""
        query_NATD, key_NATD, value_NATD = (
            project(x_NTH).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended_NATD = functional.scaled_dot_product_attention(
            query_NATD,
            key_NATD,
            value_NATD,
            attn_mask=bias,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return attended_NATD.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """Projection with a residual connection and layer norm."""

    def __init__(self, size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, added: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Return a tensor with the shape of `before`."""
        normalised: torch.Tensor = self.LayerNorm(self.dropout(self.dense(added)) + before)
        return normalised


class BertLayer(RecomputableLayer):
    """Self-attention and a feed-forward network, each with a residual connection."""

    def __init__(self, width: int, num_heads: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        attention = {"self": SelfAttention(width, num_heads, dropout), "output": Residual(width, width, dropout)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, intermediate_size)})
        self.output = Residual(intermediate_size, width, dropout)

    def forward(self, x_NTH: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return (N, T, H).

        Args:
            x_NTH: states.
            bias: additive mask, broadcastable to (N, A, T, T).
        """
        attended_NTH = self.attention["output"](self.attention["self"](x_NTH, bias), x_NTH)
        wide = functional.gelu(self.intermediate["dense"](attended_NTH))
        output_NTH: torch.Tensor = self.output(wide, attended_NTH)
        return output_NTH
