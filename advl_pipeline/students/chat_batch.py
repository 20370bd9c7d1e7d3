"""Batches of conversations: the packing of an example's sequences into a row, and the inputs of the language model.

The common prefix of an example's candidates, which includes the picture, is computed once. The candidates follow it
in one row. Each attends only to the prefix and to itself, with the position ids that it would have in its own row.
The answers of a list follow their question in the same way.

Shapes: B rows, or examples, N sequences, S tokens of a sequence, L of them text, R of them picture, W tokens of a
row, M picture tokens of all rows, Q predicted tokens, K answers, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.students.chat import ChatRow
from advl_pipeline.students.chat_config import Blocks
from advl_pipeline.students.chat_pictures import GRID, Picture, stacked
from advl_pipeline.students.interface import StudentBatch

COMMON, PADDING = -1, -2
"""Owners of tokens in a row that belong to no single candidate."""

TOKENS_AT_ONCE = 512
"""Maximum number of answer tokens after a sequence; longer lists of answers take several passes."""

MASK_ALIGNMENT = 8
"""Rows of attention masks are padded to a multiple of this; kernels copy unaligned masks in each layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """The mapping between sequences and the rows that they share; all tensors are int64.

    `token_BW` is the token at each place of a row, as n * S + s. `row_N` and `place_NS` are the inverse: a
    sequence's row, and the place of each of its tokens in the row. Token `place_M` of row `row_M` shows feature
    `feature_M` of the pictures, which are numbered consecutively.
    """

    token_BW: torch.Tensor
    row_N: torch.Tensor
    place_NS: torch.Tensor
    row_M: torch.Tensor
    place_M: torch.Tensor
    feature_M: torch.Tensor

    def packed(self, value_NS: torch.Tensor) -> torch.Tensor:
        """Gather values of sequences' tokens, (..., N, S), into rows, (..., B, W)."""
        return value_NS.flatten(-2)[..., self.token_BW]


@dataclass(frozen=True, kw_only=True)
class Packer:
    """Packs each example's sequences into one row: their common prefix, then the rest of each sequence.

    Attributes:
        num_candidates: number of sequences of each example.
        length_N: number of tokens of each sequence.
        shows_NS: bool, whether a token represents a part of the picture.
        meant: everything that distinguishes two tokens at the same place, (N, S) each, at least their ids.
        block_NS: block of each token; tokens of a block attend to each other in both directions. -1 for causal
            attention.
        apart: give each sequence its own row.
    """

    num_candidates: Sequence[int]
    length_N: npt.NDArray[np.int64]
    shows_NS: npt.NDArray[np.bool_]
    meant: Sequence[npt.NDArray[np.int64]]
    block_NS: npt.NDArray[np.int64]
    apart: bool

    @cached_property
    def row_N(self) -> npt.NDArray[np.int64]:
        """Row of each sequence."""
        if self.apart:
            return np.arange(len(self.length_N))
        return np.repeat(np.arange(len(self.num_candidates)), self.num_candidates)

    @cached_property
    def first_B(self) -> npt.NDArray[np.int64]:
        """First sequence of each row."""
        return np.unique(self.row_N, return_index=True)[1]

    @cached_property
    def place_S(self) -> npt.NDArray[np.int64]:
        """Places in a sequence."""
        return np.arange(self.shows_NS.shape[1])

    @cached_property
    def is_token_NS(self) -> npt.NDArray[np.bool_]:
        """Whether a place is not padding."""
        return self.place_S < self.length_N[:, None]

    @cached_property
    def common_B(self) -> npt.NDArray[np.int64]:
        """Length of the prefix that the sequences of a row share."""
        # States are equal up to the first differing token, as long as no later token is attended to.
        alike_NS = self.is_token_NS.copy()
        for meant_NS in (*self.meant, self.block_NS):
            alike_NS &= meant_NS == meant_NS[self.first_B[self.row_N]]
        is_common_BS = np.minimum.accumulate(np.logical_and.reduceat(alike_NS, self.first_B), axis=1)
        common_B: npt.NDArray[np.int64] = is_common_BS.sum(1)
        # Tokens that attend to later ones can share states only if everything they attend to is common.
        for row, common in enumerate(common_B):
            block_S = self.block_NS[self.first_B[row]]
            if 0 < common < len(block_S) and block_S[common - 1] >= 0:
                block = block_S[common - 1]
                if (self.block_NS[self.row_N == row, common] == block).any():
                    common_B[row] = int((block_S == block).argmax())
        return common_B

    @cached_property
    def is_own_NS(self) -> npt.NDArray[np.bool_]:
        """Whether a place is behind the common prefix."""
        return self.place_S >= self.common_B[self.row_N, None]

    @cached_property
    def place_NS(self) -> npt.NDArray[np.int64]:
        """Place of each token in its row; 0 for padding."""
        num_own_N = self.length_N - self.common_B[self.row_N]
        before_N = np.cumsum(num_own_N) - num_own_N
        before_N -= before_N[self.first_B][self.row_N]
        return np.where(self.is_token_NS, self.place_S + self.is_own_NS * before_N[:, None], 0)

    @cached_property
    def feature_NS(self) -> npt.NDArray[np.int64]:
        """Feature that each token shows; -1 for none. The sequences of an example show the same picture."""
        counts_E = np.array(self.num_candidates)
        num_features_E = self.shows_NS[np.cumsum(counts_E) - counts_E].sum(1)
        before_N = np.repeat(np.cumsum(num_features_E) - num_features_E, counts_E)
        return np.where(self.shows_NS, before_N[:, None] + self.shows_NS.cumsum(1) - 1, -1)

    def in_rows(self, value_NS: npt.NDArray[np.int64], fill: int) -> npt.NDArray[np.int64]:
        """Lay values of tokens into rows, (B, W) int64; the first sequence gives those of the common prefix."""
        is_first_N = self.first_B[self.row_N] == np.arange(len(self.row_N))
        sequence_X, place_X = np.nonzero(self.is_token_NS & (self.is_own_NS | is_first_N[:, None]))
        value_BW = np.full((len(self.first_B), int(self.place_NS.max()) + 1), fill)
        value_BW[self.row_N[sequence_X], self.place_NS[sequence_X, place_X]] = value_NS[sequence_X, place_X]
        return value_BW

    def packing(self) -> Packing:
        """Return the mapping between sequences and rows."""
        token_NS = np.arange(self.shows_NS.size).reshape(self.shows_NS.shape)
        feature_BW = self.in_rows(self.feature_NS, -1)
        row_M, place_M = np.nonzero(feature_BW >= 0)
        return Packing(
            token_BW=torch.from_numpy(self.in_rows(token_NS, 0)),
            row_N=torch.from_numpy(self.row_N),
            place_NS=torch.from_numpy(self.place_NS),
            row_M=torch.from_numpy(row_M),
            place_M=torch.from_numpy(place_M),
            feature_M=torch.from_numpy(feature_BW[row_M, place_M]),
        )

    def owners(self) -> torch.Tensor:
        """Return the owner of each place, (B, W): a sequence's index in its row, `COMMON` for all, or `PADDING`."""
        candidate_N = np.arange(len(self.row_N)) - self.first_B[self.row_N]
        return torch.from_numpy(self.in_rows(np.where(self.is_own_NS, candidate_N[:, None], COMMON), PADDING))

    def blocks(self) -> torch.Tensor:
        """Return the block of each place, (B, W)."""
        return torch.from_numpy(self.in_rows(self.block_NS, -1))


_nothing = partial(torch.empty, 0, dtype=torch.int64)


@dataclass(kw_only=True)
class Rows:
    """The inputs of one pass of the language model and the tokens to predict; int64 unless noted.

    `positions_BW` are the position ids of each token in its own sequence, (3, B, W) for a model with positions in
    time, height and width. `step_BW` is the token's place in its sequence. `own_BW` and `block_BW` come from
    `Packer`. `picture_BW` (bool) marks the picture's tokens. `behind_BW` (bool) marks the tokens of answers that
    follow their sequences; None without such answers. Token `source_Q`, numbered over all rows, predicts `target_Q`,
    a token of answer `answer_Q`, numbered over all sequences.
    """

    ids_BW: torch.Tensor
    positions_BW: torch.Tensor
    step_BW: torch.Tensor
    own_BW: torch.Tensor
    block_BW: torch.Tensor
    picture_BW: torch.Tensor
    behind_BW: torch.Tensor | None = None
    source_Q: torch.Tensor = field(default_factory=_nothing)
    target_Q: torch.Tensor = field(default_factory=_nothing)
    answer_Q: torch.Tensor = field(default_factory=_nothing)

    @property
    def width(self) -> int:
        return self.ids_BW.shape[1]

    def allowed(self, *, mask_visual: bool, window: int | None = None, blocks: Blocks = "everywhere") -> torch.Tensor:
        """Return the attention mask of a layer, (B, W, W) bool: True where a place may attend to another.

        Args:
            mask_visual: hide the picture from the text.
            window: steps that a layer with a sliding window looks back, its own included; None for other layers.
            blocks: where tokens of a block attend to each other in both directions.
        """
        own_BW, block_BW, picture = self.own_BW, self.block_BW, self.picture_BW
        place = torch.arange(own_BW.shape[1], device=own_BW.device)
        reachable = (own_BW == COMMON)[:, None, :] | (own_BW[:, None, :] == own_BW[:, :, None])
        is_block = (block_BW[:, None, :] == block_BW[:, :, None]) & (block_BW >= 0)[:, None, :]
        if blocks == "sliding layers" and window is None:
            is_block = torch.zeros_like(is_block)
        is_before = place[None, :] <= place[:, None]
        allowed = is_before | is_block
        if window is not None:
            is_near = self.step_BW[:, None, :] > self.step_BW[:, :, None] - window
            allowed = allowed & is_near
            if blocks == "beyond windows":
                allowed = allowed | is_block
        allowed = reachable & allowed
        if mask_visual:
            # Text does not attend to the picture, nor the picture to text after it.
            allowed = allowed & (picture[:, :, None] | ~picture[:, None, :])
            allowed = allowed & (is_before | picture[:, None, :] | ~picture[:, :, None])
        return allowed

    def followed(
        self, lengths: Sequence[int], wanted: Sequence[Sequence[tuple[int, Sequence[int]]]], *, num: int, end_id: int
    ) -> Rows:
        """Return rows with one sequence each, followed by answers that do not attend to each other.

        Args:
            lengths: number of tokens of each sequence; the last one predicts the first token of every answer.
            wanted: answers of each sequence, as number and tokens without the token that ends them.
            num: K.
            end_id: token that ends an answer; it is predicted, but not part of the input.
        """
        longest = max(
            length + sum(len(ids) for _, ids in answers) for length, answers in zip(lengths, wanted, strict=True)
        )
        rows = self.widened(max(longest, self.width))
        rows.behind_BW = torch.zeros_like(rows.picture_BW)
        foretold: list[npt.NDArray[np.int64]] = []
        for row, (length, answers) in enumerate(zip(lengths, wanted, strict=True)):
            sizes, numbers = np.array([(len(ids), number) for number, ids in answers], np.int64).reshape(-1, 2).T
            starts = np.cumsum(sizes) - sizes
            tokens = np.array([token for _, ids in answers for token in ids], np.int64)
            offset = torch.from_numpy(np.arange(len(tokens)) - np.repeat(starts, sizes))
            at = slice(length, length + len(tokens))
            rows.ids_BW[row, at] = torch.from_numpy(tokens)
            rows.own_BW[row, at] = torch.from_numpy(np.repeat(np.arange(len(answers)), sizes))
            rows.positions_BW[..., row, at] = rows.positions_BW[..., row, length - 1, None] + 1 + offset
            rows.step_BW[row, at] = length + offset
            rows.behind_BW[row, at] = True
            # Each token predicts the next: the sequence's last token the answer's first, the answer's last the end.
            source = np.insert(length + np.arange(len(tokens)), starts, length - 1) + row * rows.width
            target, answer = np.insert(tokens, starts + sizes, end_id), np.repeat(numbers, sizes + 1) + row * num
            foretold.append(np.stack([source, target, answer]))
        rows.source_Q, rows.target_Q, rows.answer_Q = torch.from_numpy(np.concatenate(foretold, axis=1))
        return rows

    def widened(self, width: int) -> Rows:
        """Return rows padded to a width, rounded up to a multiple of `MASK_ALIGNMENT`, without predictions."""
        more = (0, width - self.width + -width % MASK_ALIGNMENT)
        fill = {"own_BW": PADDING, "block_BW": -1}
        tensors = {part.name: getattr(self, part.name) for part in fields(self) if part.name.endswith("_BW")}
        return Rows(
            **{
                name: functional.pad(value, more, value=fill.get(name, 0))
                for name, value in tensors.items()
                if value is not None
            }
        )


@dataclass(kw_only=True)
class ChatBatch(StudentBatch):
    """Conversations, padded on the right.

    `sequence_ids_NS` contains all tokens, `length_N` their number. `text_place_NL` and `visual_place_NR` index the
    tokens of the text and of the picture. `tag_NS` (int64) is the picture token that a token refers to besides its
    word, -1 for none. `packing` maps conversations to rows, and `rows` are the inputs of the language model.
    `behind` are rows followed by answers, one entry per pass, and `num_answers` is K. K is 1 if each sequence ends
    in its own answer, which is scored (`answers_inside`). `pixels` concatenates the pictures, and `inputs` are the
    other inputs of the vision encoder. `grids` are frames, rows and columns of each picture's patches, as numbers
    instead of a tensor.
    """

    picture_field: ClassVar[str] = "pixels"

    sequence_ids_NS: torch.Tensor
    length_N: torch.Tensor
    text_place_NL: torch.Tensor
    visual_place_NR: torch.Tensor
    tag_NS: torch.Tensor
    packing: Packing
    rows: Rows
    behind: tuple[Rows, ...] = ()
    answers_inside: bool = False
    num_answers: int = 1
    length_normalised: bool = False
    pixels: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    grids: tuple[tuple[int, ...], ...] = ()

    @property
    def blank_value(self) -> int:  # type: ignore[override]  # A field of the class there; scaled values are 0 at grey.
        return 127 if self.pixels.dtype == torch.uint8 else 0

    @property
    def passes(self) -> tuple[Rows, ...]:
        """The rows that predict the answers to score; empty if there are none."""
        return (self.rows,) if self.answers_inside else self.behind

    def without_answers(self) -> Self:
        """Return the batch without answers to score."""
        return replace(self, behind=(), answers_inside=False)

    def of_sequences(self, states_BWH: torch.Tensor, place_NL: torch.Tensor) -> torch.Tensor:
        """Gather the states of sequences from those of rows, (N, L, H), float32.

        Args:
            place_NL: int64, places in each sequence.
        """
        row_N1 = self.packing.row_N[:, None] * states_BWH.shape[1]
        place_NL = row_N1 + self.packing.place_NS.gather(1, place_NL)
        return states_BWH.flatten(0, 1).index_select(0, place_NL.flatten()).view(*place_NL.shape, -1).float()

    def last_states(self, states_BWH: torch.Tensor) -> torch.Tensor:
        """Return the state of each sequence's last token, (N, H)."""
        return self.of_sequences(states_BWH, self.length_N[:, None] - 1)[:, 0]


def parts_of_list(answers: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, Sequence[int]]]]:
    """Split a list of answers into parts of at most `TOKENS_AT_ONCE` tokens; every answer keeps its number."""
    part: list[tuple[int, Sequence[int]]] = []
    size = 0
    for number, ids in enumerate(answers):
        if part and size + len(ids) > TOKENS_AT_ONCE:
            yield part
            part, size = [], 0
        part.append((number, ids))
        size += len(ids)
    yield part


Positions = Callable[[torch.Tensor, npt.NDArray[np.int64], Sequence[Sequence[int]]], torch.Tensor]
"""(ids_NS, lengths_N, grids of the sequences' pictures) -> (N, S) or (3, N, S) int64."""


def chat_batch(
    rows: Sequence[ChatRow],
    tags: Sequence[npt.NDArray[np.int64]],
    pictures: Sequence[Picture],
    positions: Positions,
    *,
    num_candidates: tuple[int, ...],
    image_token_id: int,
    pad_id: int,
    both_ways: str,
    apart: bool,
    answers_inside: bool,
    length_normalised: bool,
) -> ChatBatch:
    """Build a batch of conversations whose rows already contain the picture's tokens.

    Args:
        rows: rows of all candidates of all examples.
        tags: for each row, the picture token that each token refers to.
        pictures: one per example.
        both_ways: as in `FamilyFacts`.
        apart: as in `Packer`.
        answers_inside: each row ends in the answer to score.
    """
    text = [np.flatnonzero(~row.is_picture_S) for row in rows]
    visual = [np.flatnonzero(row.is_picture_S & (row.token_ids_S == image_token_id)) for row in rows]
    (text_place, text_mask), (visual_place, visual_mask) = (
        (padded(places, 0), padded([np.ones(len(row_places)) for row_places in places], 0).bool())
        for places in (text, visual)
    )
    ids_NS, tag_NS = padded([row.token_ids_S for row in rows], pad_id), padded(tags, -1)
    lengths = np.array([len(row.token_ids_S) for row in rows])
    starts = np.array([row.prompt_length for row in rows])
    picture_NS = padded([row.is_picture_S for row in rows], 0).bool()
    shows_NS = (picture_NS & (ids_NS == image_token_id)).numpy()
    packer = Packer(
        num_candidates=num_candidates,
        length_N=lengths,
        shows_NS=shows_NS,
        meant=(ids_NS.numpy(), tag_NS.numpy()),
        block_NS=_blocks(shows_NS, starts, both_ways),
        apart=apart,
    )
    packed = packer.packing()
    shown = _of_pictures(pictures)
    asked = [grid for grid, count in zip(shown["grids"], num_candidates, strict=False) for _ in range(count)]
    read = Rows(
        ids_BW=packed.packed(ids_NS),
        positions_BW=packed.packed(positions(ids_NS, lengths, asked)),
        step_BW=packed.token_BW % ids_NS.shape[1],
        own_BW=packer.owners(),
        block_BW=packer.blocks(),
        picture_BW=packed.packed(picture_NS),
    )
    read = read.widened(read.width)
    if answers_inside:
        _foretell(read, packed, ids_NS, starts, lengths)
    return ChatBatch(
        num_candidates=num_candidates,
        token_ids_NL=torch.where(text_mask, ids_NS.gather(1, text_place), pad_id),
        token_mask_NL=text_mask,
        char_spans_NL2=padded([row.spans_S2[place] for row, place in zip(rows, text, strict=True)], 0),
        visual_mask_NR=visual_mask,
        box_index_NR=torch.full(visual_mask.shape, -1),
        sequence_ids_NS=ids_NS,
        length_N=torch.from_numpy(lengths),
        text_place_NL=text_place,
        visual_place_NR=visual_place,
        tag_NS=tag_NS,
        packing=packed,
        rows=read,
        answers_inside=answers_inside,
        length_normalised=length_normalised,
        **shown,
    )


def _of_pictures(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return the fields of a batch that come from its pictures."""
    names = [name for name in pictures[0].inputs if name != GRID]
    grids = (picture.inputs[GRID][0].tolist() for picture in pictures if GRID in picture.inputs)
    places = [torch.from_numpy(picture.places_R4) for picture in pictures]
    return {
        "places_BR4": pad_sequence(places, batch_first=True, padding_value=torch.nan),
        "pixels": stacked([picture.pixels for picture in pictures]),
        "inputs": {name: stacked([picture.inputs[name] for picture in pictures]) for name in names},
        "grids": tuple(map(tuple, grids)),
    }


def _blocks(shows_NS: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64], both_ways: str) -> npt.NDArray[np.int64]:
    """Return the block of each token, (N, S) int64, for attention in both directions; -1 for no block."""
    if both_ways == "picture":
        begins_NS = shows_NS & ~np.pad(shows_NS, ((0, 0), (1, 0)))[:, :-1]
        return np.where(shows_NS, begins_NS.cumsum(1), -1)
    is_block_NS = (np.arange(shows_NS.shape[1]) < starts[:, None]) & (both_ways == "question")
    return np.where(is_block_NS, 0, -1)


def _foretell(
    rows: Rows,
    packed: Packing,
    ids_NS: torch.Tensor,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> None:
    """Let rows predict the answers at the end of their sequences, in place."""
    places = [np.arange(start, length) for start, length in zip(starts, lengths, strict=True)]
    place_Q = torch.from_numpy(np.concatenate(places))
    answer_Q = torch.from_numpy(np.repeat(np.arange(len(places)), lengths - starts))
    rows.answer_Q, rows.target_Q = answer_Q, ids_NS[answer_Q, place_Q]
    rows.source_Q = packed.place_NS[answer_Q, place_Q - 1] + packed.row_N[answer_Q] * rows.width


def padded(rows: Sequence[npt.NDArray[np.generic]], value: int) -> torch.Tensor:
    """Stack one or more integer rows, padded with `value` on the right."""
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
