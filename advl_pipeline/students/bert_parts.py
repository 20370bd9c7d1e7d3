"""Parts that BERT-family students share: configuration, initialisation, masks, heads, and how much each text token
of a layer looks at the picture.

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
"""What a softmax gives no weight. Autocast rounds masks to fp16 or bf16, where the lowest fp32 would be infinite."""


def bert_config(config: Configuration, **other: Any) -> BertConfig:
    """Return transformers' configuration of a student's BERT layers, which attend as `run_layers` has them do.

    Args:
        config: of the student.
        other: settings by the library's names, such as `attn_implementation="sdpa"` for layers that run otherwise.
    """
    # A student without transformers' layers starts in half the time.
    from transformers import AttentionInterface, BertConfig

    AttentionInterface.register(ATTENTION, one_row_attention)
    made: BertConfig = library_config(BertConfig, config, **{"attn_implementation": ATTENTION, **other})
    return made


def initialise_bert(module: nn.Module) -> None:
    """Draw linear and embedding weights from N(0, 0.02), zero the biases, as BERT's reference code does."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def token_kinds(text_mask_NL: torch.Tensor, visual_mask_NR: torch.Tensor) -> torch.Tensor:
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
    """Return (N, H): the raw state of the token that a row names, or the pooled first token where it names none."""
    index = pool_index_N[:, None, None].expand(-1, 1, text_NLH.shape[-1])
    named_NH = text_NLH.gather(1, index)[:, 0]
    return torch.where((pool_index_N > 0)[:, None], named_NH, pooler(text_NLH).to(named_NH.dtype))


class RecomputableLayer(nn.Module):
    """A layer that `enable_gradient_checkpointing` has recompute its inside, as transformers' layers can."""

    gradient_checkpointing = False

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            recomputed: torch.Tensor = checkpoint(super().__call__, *inputs, use_reentrant=False)
            return recomputed
        output: torch.Tensor = super().__call__(*inputs)
        return output


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


ATTENTION = "advl_one_row"
"""Name of the attention function in a configuration's `attn_implementation`."""

_SEQUENCES_AT_ONCE = 4
"""Of a grid on a CPU: the candidates of a question are of like length, and their attention stays in the cache."""


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """Where each of the T tokens is, sequence by sequence and in order.

    `column_T` (int64) is its place in the flattened (N, S) layout, `slot_T` that in the flattened (N, G) grid, and
    `first_N` says which of the T tokens are the sequences' first. It is made where a batch is collated: a device
    would make the host wait to be told how many tokens there are.
    """

    num_sequences: int
    size: int
    column_T: torch.Tensor
    slot_T: torch.Tensor
    first_N: torch.Tensor

    @classmethod
    def of_kinds(cls, kinds_NS: torch.Tensor) -> TokenGrid:
        """Lay out the positions that are no padding."""
        visible_NS = kinds_NS != PADDING
        lengths_N = visible_NS.sum(1)
        size = int(lengths_N.max())
        column_T = visible_NS.flatten().nonzero()[:, 0]
        first_N1 = size * torch.arange(len(kinds_NS), device=kinds_NS.device)[:, None]
        slot_T = (first_N1 + visible_NS.cumsum(1) - 1).flatten()[column_T]
        first_N = lengths_N.cumsum(0) - lengths_N
        return cls(num_sequences=len(kinds_NS), size=size, column_T=column_T, slot_T=slot_T, first_N=first_N)

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


Block = tuple[TokenGrid, torch.Tensor]
"""Sequences that are next to one another, which attention sees as one grid, and the additive mask of the grid."""


def blocks_of(kinds_NS: torch.Tensor, whole: TokenGrid, *, separate: bool, dtype: torch.dtype) -> list[Block]:
    """Return the blocks of a batch, in order. There is one where starting many small kernels would cost more.

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
    """Attend within the sequences of one row; within those of a padded batch where no blocks are given.

    Args:
        module: transformers' layer, which asks for attention.
        query: (1, A, T, D); (N, A, S, D) without blocks.
        key: as `query`.
        value: as `query`.
        attention_mask: additive, broadcastable to (N, A, S, S); of no use with blocks.
        dropout: of the weights.
        scaling: of the products of queries and keys.
        blocks: of the row, which have masks of their own.
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
    """Give of each block its grid, its mask, and what it has of each row, laid out in the grid: (N, A, G, D)."""
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
    """Return (N, G, A, D): what each of G queries finds among the keys, all (N, A, G, D).

    Args:
        query: (N, A, G, D).
        key: as `query`.
        value: as `query`.
        bias: additive mask, broadcastable to (N, A, G, G); None where all attend to all.
        dropout: of the weights.
        scaling: of the products of queries and keys.
    """
    if dropout == 0.0 or bias is None or query.device.type != "cpu":
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
        )
        return attended.transpose(1, 2).contiguous()
    # What torch does on a CPU, without its search for rows that may attend to nothing: the mask is finite.
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
        layers: transformers' `BertLayer`s, made with `attn_implementation=ATTENTION`.
        x_NSH: embeddings, text first.
        kinds_NS: as `token_kinds` returns them.
        num_text: L.
        grid: of the tokens that are no padding [default: it is made of `kinds_NS`].
        separate: hide text and picture from one another.
        need_relevance: also return (N, L) of the last layer; else None.
        first_only: return the state of each sequence's first token alone, (N, 1, H).
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
    """Return (N, 1, H): what a `BertLayer` makes of each sequence's first token, by keys and values of all tokens."""
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
