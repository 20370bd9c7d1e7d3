"""BERT layers over text and picture together, without computing padding.

Nearly all work of a transformer treats every token alone. So the tokens of all sequences pass the layers as one long
row, and attention alone, which must not mix sequences, sees them spread over a padded grid. The states are those of
the padded layout.

Shapes: N sequences, S = L + R columns (text, then picture, padding in both), T tokens of all sequences, G places of
the longest sequence, H width, A heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from advl_pipeline.students.bert_parts import PADDING, attention_bias, attention_mass

ATTENTION = "advl_one_row"
"""Name of the attention function in a configuration's `attn_implementation`."""

COMPILE_REFUSAL = "its rows of real tokens have a new length in every batch, which torch.compile cannot trace through"
"""Why students that run their layers here refuse `torch.compile`: the graph breaks before and after each of them."""


class TokenGrid:
    """Where each of the T tokens lies, sequence by sequence and in order.

    `column_T` (int64) is its place in the flattened (N, S) layout, `slot_T` that in the flattened (N, G) grid.
    """

    def __init__(self, visible_NS: torch.Tensor) -> None:
        self.num_sequences = visible_NS.shape[0]
        self.size = int(visible_NS.sum(1).max())
        self.column_T = visible_NS.flatten().nonzero()[:, 0]
        first_N1 = self.size * torch.arange(self.num_sequences, device=visible_NS.device)[:, None]
        self.slot_T = (first_N1 + visible_NS.cumsum(1) - 1).flatten()[self.column_T]

    def take(self, x_NSH: torch.Tensor) -> torch.Tensor:
        """Return (1, T, H): the tokens without padding."""
        return x_NSH.flatten(0, 1).index_select(0, self.column_T)[None]

    def put_back(self, x_1TH: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Undo `take`: (N, S, H), zero at padding."""
        row_TH = x_1TH[0]
        flat = row_TH.new_zeros(self.num_sequences * num_columns, row_TH.shape[1])
        return flat.index_copy(0, self.column_T, row_TH).view(self.num_sequences, num_columns, -1)

    def spread(self, x_1ATD: torch.Tensor) -> torch.Tensor:
        """Return (N, A, G, D): heads of one row, cut into sequences; zero behind each."""
        _, heads, _, size = x_1ATD.shape
        row = x_1ATD[0].transpose(0, 1).flatten(1)
        flat = row.new_zeros(self.num_sequences * self.size, heads * size).index_copy(0, self.slot_T, row)
        return flat.view(self.num_sequences, self.size, heads, size).transpose(1, 2)

    def gather(self, x_NGAD: torch.Tensor) -> torch.Tensor:
        """Return (1, T, A, D): what attention found, as one row again."""
        row = x_NGAD.flatten(2).flatten(0, 1).index_select(0, self.slot_T)
        return row.view(1, -1, *x_NGAD.shape[2:])

    def kinds(self, kinds_NS: torch.Tensor) -> torch.Tensor:
        """Return (N, G): the kind of each place of the grid."""
        flat = kinds_NS.new_full((self.num_sequences * self.size,), PADDING)
        placed = flat.index_copy(0, self.slot_T, kinds_NS.flatten()[self.column_T])
        return placed.view(self.num_sequences, self.size)


def one_row_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    grid: TokenGrid | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA over the sequences of one row; over a padded batch where no grid is given.

    Args:
        query: (1, A, T, D), as key and value are; (N, A, S, D) without a grid.
        key: as said.
        value: as said.
        attention_mask: additive, broadcastable to (N, A, G, G).
        options: dropout, scaling and the like, as transformers gives them.
    """
    if grid is not None:
        query, key, value = (grid.spread(part) for part in (query, key, value))
    found_NGAD: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
    return found_NGAD if grid is None else grid.gather(found_NGAD), None


AttentionInterface.register(ATTENTION, one_row_attention)


def run_layers(
    layers: Sequence[nn.Module],
    x_NSH: torch.Tensor,
    kinds_NS: torch.Tensor,
    *,
    num_text: int,
    separate: bool = False,
    need_relevance: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the last layer's states (N, S, H), zero at padding, and each text token's attention to the picture.

    Args:
        layers: transformers' `BertLayer`s, made with `attn_implementation=ATTENTION`.
        x_NSH: embeddings, text first.
        kinds_NS: as `kinds_of` returns them.
        num_text: L.
        separate: hide text and picture from one another.
        need_relevance: also return (N, L) of the last layer; else None.
    """
    if torch.compiler.is_exporting():
        # A program for any batch cannot depend on how many tokens are real.
        return _run_padded(layers, x_NSH, kinds_NS, separate=separate), None
    grid = TokenGrid(kinds_NS != PADDING)
    bias = attention_bias(grid.kinds(kinds_NS), separate=separate, dtype=x_NSH.dtype)
    row_1TH = grid.take(x_NSH)
    *first, last = layers
    for layer in first:
        row_1TH = layer(row_1TH, bias, grid=grid)
    relevance_NL = None
    if need_relevance:
        attention: Any = last
        padded_NSH = grid.put_back(row_1TH.detach(), x_NSH.shape[1])
        padded_bias = attention_bias(kinds_NS, separate=separate, dtype=padded_NSH.dtype)
        relevance_NL = attention_mass(attention.attention.self, padded_NSH, padded_bias, num_text)
    return grid.put_back(last(row_1TH, bias, grid=grid), x_NSH.shape[1]), relevance_NL


def _run_padded(
    layers: Sequence[nn.Module], x_NSH: torch.Tensor, kinds_NS: torch.Tensor, *, separate: bool
) -> torch.Tensor:
    bias = attention_bias(kinds_NS, separate=separate, dtype=x_NSH.dtype)
    for layer in layers:
        x_NSH = layer(x_NSH, bias)
    return x_NSH * (kinds_NS != PADDING)[..., None]
