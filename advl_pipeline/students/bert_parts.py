"""Shared parts of BERT-family students.

They are configuration, initialisation, masks, heads, attention without padding, and the attention mass from text
tokens to the picture.

Shapes: N sequences, S positions of one sequence, H width, K classes, T tokens of text and picture together, L text
tokens first among them, A heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from advl_pipeline.base.configuration import Configuration
from advl_pipeline.students.presets import library_config

if TYPE_CHECKING:
    from transformers import BertConfig

TEXT, VISUAL, PADDING = 0, 1, -1
"""Kinds of a position in a single-stream sequence."""

_MASKED = torch.finfo(torch.float16).min
"""Mask value without weight in a softmax. Autocast rounds masks to fp16 or bf16; the lowest fp32 would become inf."""


def bert_config(config: Configuration, **other: Any) -> BertConfig:
    """Return the transformers configuration of a student's BERT layers, with the attention of `run_layers`.

    Args:
        config: the student's configuration.
        other: settings by transformers' names, such as `attn_implementation="sdpa"` for layers not in `run_layers`.
    """
    # A student without transformers' layers starts in half the time without this import.
    from transformers import AttentionInterface, BertConfig

    AttentionInterface.register(ATTENTION, one_row_attention)
    made: BertConfig = library_config(BertConfig, config, **{"attn_implementation": ATTENTION, **other})
    return made


def initialise_bert(module: nn.Module) -> None:
    """Draw linear and embedding weights from N(0, 0.02) and zero the biases, as in BERT's reference code."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def token_kinds(text_mask_NL: torch.Tensor, visual_mask_NR: torch.Tensor) -> torch.Tensor:
    """Return the kind of each position of text followed by picture, (N, L + R) int64."""
    text = torch.where(text_mask_NL.bool(), TEXT, PADDING)
    visual = torch.where(visual_mask_NR.bool(), VISUAL, PADDING)
    return torch.cat([text, visual], dim=1)


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where a row may attend and a large negative number elsewhere, in the shape of `allowed`.

    A row that may attend to nothing is padding, and its state is unused. It attends to everything, because some
    kernels return NaN for a softmax over nothing.

    Args:
        allowed: bool, (..., S); the last axis is attended to.
        dtype: dtype of the mask.
    """
    seen = allowed | ~allowed.any(-1, keepdim=True)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, _MASKED)


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """Return the dtype in which attention over states is computed; layers need not cast a mask of this dtype."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def attention_bias(kind_NS: torch.Tensor, *, separate: bool = False, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive attention mask, (N, 1, 1, S), or (N, 1, S, S) with `separate`.

    Padding is never attended to. With `separate`, text attends only to text, and the picture only to itself.
    """
    allowed = (kind_NS != PADDING)[:, None, None, :]
    if separate:
        allowed = allowed & (kind_NS[:, None, :, None] == kind_NS[:, None, None, :])
    return additive_mask(allowed, dtype)


def padding_bias(mask_NT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive padding mask (N, 1, 1, T) of self-attention in a text or a picture."""
    return attention_bias(torch.where(mask_NT, TEXT, PADDING), dtype=dtype)


def widening_head(width: int, num_classes: int, activation: nn.Module | None = None) -> nn.Sequential:
    """Return Linear -> activation (GELU) -> LayerNorm -> Linear, the head of UNITER, LXMERT and CLIP-ViL."""
    wide = 2 * width
    between = activation or nn.GELU(), nn.LayerNorm(wide, eps=1e-12)
    head = nn.Sequential(nn.Linear(width, wide), *between, nn.Linear(wide, num_classes))
    initialise_bert(head)
    return head


def norm_first_head(width: int, num_classes: int, *, hidden: int) -> nn.Sequential:
    """Return Linear -> LayerNorm -> GELU -> Linear, the head of ViLT, METER and BridgeTower."""
    head = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, num_classes))
    initialise_bert(head)
    return head


def named_or_pooled(text_NLH: torch.Tensor, pool_index_N: torch.Tensor, pooler: nn.Module) -> torch.Tensor:
    """Return the raw state at `pool_index_N`, or the pooled first token if the index is 0, (N, H)."""
    index = pool_index_N[:, None, None].expand(-1, 1, text_NLH.shape[-1])
    named_NH = text_NLH.gather(1, index)[:, 0]
    return torch.where((pool_index_N > 0)[:, None], named_NH, pooler(text_NLH).to(named_NH.dtype))


class RecomputableLayer(nn.Module):
    """A layer with support for `enable_gradient_checkpointing`, like transformers' layers."""

    gradient_checkpointing = False

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            recomputed: torch.Tensor = checkpoint(super().__call__, *inputs, use_reentrant=False)
            return recomputed
        output: torch.Tensor = super().__call__(*inputs)
        return output


@torch.no_grad()
def attention_mass(self_attention: Any, x_NTH: torch.Tensor, bias: torch.Tensor, num_text: int) -> torch.Tensor:
    """Return the attention from each text token to the visual tokens, averaged over heads, detached, (N, L).

    Args:
        self_attention: a transformers `BertSelfAttention` (query, key, num_attention_heads).
        x_NTH: input states of the layer.
        bias: additive mask broadcastable to (N, A, T, T).
        num_text: L; the visual tokens follow.
    """
    num_heads: int = self_attention.num_attention_heads
    num_sequences, _, width = x_NTH.shape
    head_size = width // num_heads
    query, key = (
        project(states).view(num_sequences, -1, num_heads, head_size).transpose(1, 2)
        for project, states in ((self_attention.query, x_NTH[:, :num_text]), (self_attention.key, x_NTH))
    )
    # The result selects words, so it is summed in full precision even if attention computes in half.
    scores = (query @ key.transpose(-1, -2) / math.sqrt(head_size)).float()
    weights = torch.softmax(scores + (bias[:, :, :num_text] if bias.shape[2] > 1 else bias), dim=-1)
    mass_NL: torch.Tensor = weights[..., num_text:].sum(-1).mean(1)
    return mass_NL


ATTENTION = "advl_one_row"
"""Name of the attention function in a configuration's `attn_implementation`."""

_SEQUENCES_AT_ONCE = 4
"""Sequences of a grid on a CPU: candidates of a question have similar lengths, and their attention fits the cache."""


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """Indices of the T tokens without padding, ordered by sequence.

    `column_T` (int64) are indices into the flattened (N, S) layout, `slot_T` into the flattened (N, G) grid, and
    `first_N` are the sequences' first tokens. The grid is built in `collate`, on the CPU, because counting tokens on
    a device would synchronise with it.
    """

    num_sequences: int
    size: int
    column_T: torch.Tensor
    slot_T: torch.Tensor
    first_N: torch.Tensor

    @classmethod
    def of_kinds(cls, kinds_NS: torch.Tensor) -> TokenGrid:
        """Build the grid of all positions except padding."""
        visible_NS = kinds_NS != PADDING
        lengths_N = visible_NS.sum(1)
        size = int(lengths_N.max())
        column_T = visible_NS.flatten().nonzero()[:, 0]
        first_N1 = size * torch.arange(len(kinds_NS), device=kinds_NS.device)[:, None]
        slot_T = (first_N1 + visible_NS.cumsum(1) - 1).flatten()[column_T]
        first_N = lengths_N.cumsum(0) - lengths_N
        return cls(num_sequences=len(kinds_NS), size=size, column_T=column_T, slot_T=slot_T, first_N=first_N)

    def take(self, x_NSH: torch.Tensor) -> torch.Tensor:
        """Return the tokens without padding, (1, T, H)."""
        return x_NSH.flatten(0, 1).index_select(0, self.column_T)[None]

    def put_back(self, x_1TH: torch.Tensor, num_columns: int) -> torch.Tensor:
        """Invert `take`, (N, S, H), with zeros at padding."""
        row_TH = x_1TH[0]
        flat = row_TH.new_zeros(self.num_sequences * num_columns, row_TH.shape[1])
        return flat.index_copy(0, self.column_T, row_TH).view(self.num_sequences, num_columns, -1)

    def spread(self, x_1ATD: torch.Tensor) -> torch.Tensor:
        """Split the heads of one row into sequences, (N, A, G, D), padded with zeros."""
        _, heads, _, size = x_1ATD.shape
        row = x_1ATD[0].transpose(0, 1).flatten(1)
        flat = row.new_zeros(self.num_sequences * self.size, heads * size).index_copy(0, self.slot_T, row)
        return flat.view(self.num_sequences, self.size, heads, size).transpose(1, 2)

    def gather(self, x_NGAD: torch.Tensor) -> torch.Tensor:
        """Gather the output of attention into one row, (1, T, A, D)."""
        row = x_NGAD.flatten(2).flatten(0, 1).index_select(0, self.slot_T)
        return row.view(1, -1, *x_NGAD.shape[2:])

    def kinds(self, kinds_NS: torch.Tensor) -> torch.Tensor:
        """Return the kind of each place of the grid, (N, G)."""
        flat = kinds_NS.new_full((self.num_sequences * self.size,), PADDING)
        placed = flat.index_copy(0, self.slot_T, kinds_NS.flatten()[self.column_T])
        return placed.view(self.num_sequences, self.size)


Block = tuple[TokenGrid, torch.Tensor]
"""The grid of adjacent sequences in one call of attention, and its additive mask."""


def blocks_of(kinds_NS: torch.Tensor, whole: TokenGrid, *, separate: bool, dtype: torch.dtype) -> list[Block]:
    """Return the blocks of a batch, in order. On accelerators there is one, to avoid many small kernels.

    Args:
        whole: the grid of the batch.
    """
    grids = [(kinds_NS, whole)]
    if kinds_NS.device.type == "cpu":
        grids = [(part, TokenGrid.of_kinds(part)) for part in torch.split(kinds_NS, _SEQUENCES_AT_ONCE)]
    return [(grid, attention_bias(grid.kinds(part), separate=separate, dtype=dtype)) for part, grid in grids]


def one_row_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float = 1.0,
    blocks: Sequence[Block] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the sequences of one row or, without blocks, of a padded batch.

    Args:
        module: transformers' layer that calls the function.
        query: (1, A, T, D); (N, A, S, D) without blocks.
        key: as `query`.
        value: as `query`.
        attention_mask: additive, broadcastable to (N, A, S, S); ignored with blocks.
        dropout: dropout of the attention weights.
        scaling: factor of the products of queries and keys.
        blocks: blocks of the row, with their own masks.
    """
    if not blocks:
        return attend(query, key, value, attention_mask, dropout=dropout, scaling=scaling), None
    attended = [
        grid.gather(attend(queries, keys, values, bias, dropout=dropout, scaling=scaling))
        for grid, bias, (queries, keys, values) in in_blocks(blocks, query, key, value)
    ]
    return torch.cat(attended, dim=1), None


def in_blocks(
    blocks: Sequence[Block], *rows_1ATD: torch.Tensor
) -> Iterator[tuple[TokenGrid, torch.Tensor, list[torch.Tensor]]]:
    """Yield the grid and the mask of each block, and its part of each row in the grid's layout, (N, A, G, D)."""
    lengths = [len(grid.slot_T) for grid, _ in blocks]
    parts = (torch.split(row_1ATD, lengths, dim=2) for row_1ATD in rows_1ATD)
    for (grid, bias), *of_block in zip(blocks, *parts, strict=True):
        yield grid, bias, [grid.spread(part) for part in of_block]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float = 1.0,
) -> torch.Tensor:
    """Compute scaled dot-product attention, (N, G, A, D).

    Args:
        query: (N, A, G, D).
        key: as `query`.
        value: as `query`.
        bias: additive mask, broadcastable to (N, A, G, G); None for no mask.
        dropout: dropout of the attention weights.
        scaling: factor of the products of queries and keys.
    """
    if dropout == 0.0 or bias is None or query.device.type != "cpu":
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
        )
        return attended.transpose(1, 2).contiguous()
    # Same as torch on a CPU, without its check for fully masked rows, because the mask is finite.
    weights = ((query * scaling) @ key.transpose(-1, -2) + bias).softmax(-1)
    return (functional.dropout(weights, dropout) @ value).transpose(1, 2)


def run_layers(
    layers: Sequence[nn.Module],
    x_NSH: torch.Tensor,
    kinds_NS: torch.Tensor,
    *,
    num_text: int,
    grid: TokenGrid | None = None,
    separate: bool = False,
    need_relevance: bool = False,
    first_only: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the last layer's states (N, S, H), zero at padding, and each text token's attention to the picture.

    Args:
        layers: transformers' `BertLayer`s with `attn_implementation=ATTENTION`.
        x_NSH: embeddings, text first.
        kinds_NS: output of `token_kinds`.
        num_text: L.
        grid: grid of the tokens without padding [default: built from `kinds_NS`].
        separate: hide text and picture from each other.
        need_relevance: also return the attention (N, L) of the last layer; else None.
        first_only: return only the state of each sequence's first token, (N, 1, H).
    """
    grid = grid or TokenGrid.of_kinds(kinds_NS)
    blocks = blocks_of(kinds_NS, grid, separate=separate, dtype=compute_dtype(x_NSH))
    row_1TH = grid.take(x_NSH)
    *first, last = layers
    for layer in first:
        row_1TH = layer(row_1TH, blocks=blocks)
    relevance_NL = None
    if need_relevance:
        attention: Any = last
        padded_NSH = grid.put_back(row_1TH.detach(), x_NSH.shape[1])
        padded_bias = attention_bias(kinds_NS, separate=separate, dtype=padded_NSH.dtype)
        relevance_NL = attention_mass(attention.attention.self, padded_NSH, padded_bias, num_text)
    if first_only:
        return _first_states(last, row_1TH, grid, blocks), relevance_NL
    return grid.put_back(last(row_1TH, blocks=blocks), x_NSH.shape[1]), relevance_NL


def _first_states(layer: Any, row_1TH: torch.Tensor, grid: TokenGrid, blocks: Sequence[Block]) -> torch.Tensor:
    """Return the output of a `BertLayer` for each sequence's first token, which attends to all tokens, (N, 1, H)."""
    attention = layer.attention.self
    first_1NH = row_1TH.index_select(1, grid.first_N)
    query, key, value = (
        part.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for part in (attention.query(first_1NH), attention.key(row_1TH), attention.value(row_1TH))
    )
    queries = torch.split(query.transpose(0, 2), [grid.num_sequences for grid, _ in blocks])
    dropout = attention.dropout.p if attention.training else 0.0
    found_N1AD = torch.cat(
        [
            attend(query_NA1D, keys, values, bias[:, :, :1], dropout=dropout, scaling=attention.scaling)
            for query_NA1D, (_, bias, (keys, values)) in zip(queries, in_blocks(blocks, key, value), strict=True)
        ]
    )
    first_N1H: torch.Tensor = layer.attention.output(found_N1AD.flatten(2), first_1NH.transpose(0, 1))
    return layer.feed_forward_chunk(first_N1H)  # type: ignore[no-any-return]
