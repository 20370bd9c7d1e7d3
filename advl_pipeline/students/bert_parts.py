"""Parts that BERT-family students share: configuration, initialisation, masks, heads, and how much each text token
of a layer looks at the picture.

Shapes: N sequences, S positions of one sequence, H width, K classes, T tokens of text and picture together, L text
tokens first among them, A heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import BertConfig

TEXT, VISUAL, PADDING = 0, 1, -1
"""Kinds of a position in a single-stream sequence."""

_MASKED = torch.finfo(torch.float16).min
"""What a softmax gives no weight. Autocast rounds masks to fp16 or bf16, where the lowest fp32 would be infinite."""


def bert_config(
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    vocab_size: int = 1,
    max_positions: int = 1,
    num_types: int = 1,
    dropout: float = 0.1,
    attention: str = "sdpa",
    **other: Any,
) -> BertConfig:
    """Return BERT's configuration with the constants that every student of the family uses (eps 1e-12, erf GELU)."""
    return BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_position_embeddings=max_positions,
        type_vocab_size=num_types,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        attn_implementation=attention,
        **other,
    )


def initialise_bert(module: nn.Module, *, std: float = 0.02) -> None:
    """Draw linear and embedding weights from N(0, std), zero the biases, as BERT's reference code does."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def kinds_of(text_mask_NL: torch.Tensor, visual_mask_NR: torch.Tensor) -> torch.Tensor:
    """Return (N, L + R) int64: the kind of each position of text followed by picture."""
    text = torch.where(text_mask_NL.bool(), TEXT, PADDING)
    visual = torch.where(visual_mask_NR.bool(), VISUAL, PADDING)
    return torch.cat([text, visual], dim=1)


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where a row may attend and a large negative number elsewhere, in the shape of `allowed`.

    A row that may attend to nothing is padding, whose state nobody reads. It attends to everything, since some
    kernels make a softmax over nothing not a number.

    Args:
        allowed: bool, (..., S); the last axis is attended to.
        dtype: of the mask.
    """
    seen = allowed | ~allowed.any(-1, keepdim=True)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, _MASKED)


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """Return what attention over some states computes in: a mask of that type is rounded and kept by no layer."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def attention_bias(kind_NS: torch.Tensor, *, separate: bool = False, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive attention mask, (N, 1, 1, S), or (N, 1, S, S) with `separate`.

    Padding is never attended to. With `separate`, text attends to text only and the picture to itself only.
    """
    allowed = (kind_NS != PADDING)[:, None, None, :]
    if separate:
        allowed = allowed & (kind_NS[:, None, :, None] == kind_NS[:, None, None, :])
    return additive_mask(allowed, dtype)


def padding_bias(mask_NT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive mask (N, 1, 1, T) of text, or of a picture, that attends to itself."""
    return attention_bias(torch.where(mask_NT, TEXT, PADDING), dtype=dtype)


def widening_head(width: int, num_classes: int, *, hidden: int, activation: nn.Module, eps: float) -> nn.Sequential:
    """Return Linear -> activation -> LayerNorm -> Linear, the head of UNITER, LXMERT and CLIP-ViL."""
    head = nn.Sequential(
        nn.Linear(width, hidden), activation, nn.LayerNorm(hidden, eps=eps), nn.Linear(hidden, num_classes)
    )
    initialise_bert(head)
    return head


def norm_first_head(width: int, num_classes: int, *, hidden: int) -> nn.Sequential:
    """Return Linear -> LayerNorm -> GELU -> Linear, the head of ViLT, METER and BridgeTower."""
    head = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, num_classes))
    initialise_bert(head)
    return head


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
    num_sequences, _, width = x_NTH.shape
    head_size = width // num_heads
    query, key = (
        project(states).view(num_sequences, -1, num_heads, head_size).transpose(1, 2)
        for project, states in ((self_attention.query, x_NTH[:, :num_text]), (self_attention.key, x_NTH))
    )
    # Words are chosen by what is returned, so that it is summed in full precision where attention computes in half.
    scores = (query @ key.transpose(-1, -2) / math.sqrt(head_size)).float()
    weights = torch.softmax(scores + (bias[:, :, :num_text] if bias.shape[2] > 1 else bias), dim=-1)
    mass_NL: torch.Tensor = weights[..., num_text:].sum(-1).mean(1)
    return mass_NL
