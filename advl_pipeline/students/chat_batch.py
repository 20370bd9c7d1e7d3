"""Conversations about pictures as tensors: where the text lies, where the picture, and which answers are asked about.

The model reads one row for each example. What an example's candidates have in common, the picture above all, lies
there once; what is a candidate's own lies behind it, beside that of the others.

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R of them picture, W tokens of an example's
row, M tokens of pictures in all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.students.answers import Answers, answers_inside, padded
from advl_pipeline.students.chat import ChatRow
from advl_pipeline.students.interface import StudentBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture as a family reads it: its tokens, what its vision encoder takes, and where its states lie (R, 4)."""

    token_ids: tuple[int, ...]
    pixels: torch.Tensor
    places_R4: npt.NDArray[np.float32]


COMMON, PADDING = -1, -2
"""Whose a token of a row is, where it is no candidate's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """The row of each example, all int64.

    `token_BW` says which token of which sequence lies at each place, n * S + s; `own_BW` which of the example's
    candidates it belongs to, `COMMON` where to all and `PADDING` where to none. `place_NS` is the way back: where in
    its example's row each token of a sequence lies. Token `place_M` of row `row_M` shows feature `feature_M` of the
    pictures, which are counted one after the other.
    """

    token_BW: torch.Tensor
    own_BW: torch.Tensor
    place_NS: torch.Tensor
    row_M: torch.Tensor
    place_M: torch.Tensor
    feature_M: torch.Tensor

    def to(self, device: torch.device) -> Packing:
        """Return the packing on a device."""
        return Packing(**{one.name: getattr(self, one.name).to(device, non_blocking=True) for one in fields(self)})

    def packed(self, value_NS: torch.Tensor) -> torch.Tensor:
        """Lay what sequences have for each token, (..., N, S), out in rows: (..., B, W)."""
        return value_NS.flatten(-2)[..., self.token_BW]


def packing(
    num_candidates: Sequence[int],
    lengths: npt.NDArray[np.int64],
    visual_place: Sequence[npt.NDArray[np.int64]],
    *meant_NS: npt.NDArray[np.int64],
) -> Packing:
    """Pack each example's sequences into one row.

    Args:
        num_candidates: sequences of each example.
        lengths: tokens of each sequence.
        visual_place: where each sequence's picture tokens lie.
        meant_NS: everything that tells two tokens of one place apart; their ids at least.
    """
    num_sequences, size = meant_NS[0].shape
    feature_NS = np.full((num_sequences, size), -1)
    place_NS = np.zeros((num_sequences, size), dtype=np.int64)
    rows: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    first = first_feature = 0
    for number in num_candidates:
        sequences = range(first, first + number)
        # States are causal: they are the same as far as the tokens are.
        shortest = int(lengths[first : first + number].min())
        differs = np.zeros(shortest, dtype=bool)
        for meant in meant_NS:
            differs |= (meant[first : first + number, :shortest] != meant[first, :shortest]).any(0)
        common = int(differs.argmax()) if differs.any() else shortest
        tokens, own = [first * size + np.arange(common)], [np.full(common, COMMON)]
        width = common
        for candidate, sequence in enumerate(sequences):
            alone = int(lengths[sequence]) - common
            place_NS[sequence, :common] = np.arange(common)
            place_NS[sequence, common : common + alone] = width + np.arange(alone)
            feature_NS[sequence, visual_place[sequence]] = first_feature + np.arange(len(visual_place[sequence]))
            tokens.append(sequence * size + common + np.arange(alone))
            own.append(np.full(alone, candidate))
            width += alone
        rows.append((np.concatenate(tokens), np.concatenate(own)))
        first_feature += len(visual_place[first])
        first += number
    token_BW, own_BW = padded([row for row, _ in rows], 0), padded([own for _, own in rows], PADDING)
    feature_BW = np.where(own_BW.numpy() == PADDING, -1, feature_NS.reshape(-1)[token_BW.numpy()])
    row_M, place_M = np.nonzero(feature_BW >= 0)
    return Packing(
        token_BW=token_BW,
        own_BW=own_BW,
        place_NS=torch.from_numpy(place_NS),
        row_M=torch.from_numpy(row_M),
        place_M=torch.from_numpy(place_M),
        feature_M=torch.from_numpy(feature_BW[row_M, place_M]),
    )


@dataclass(kw_only=True)
class ChatBatch(StudentBatch):
    """Conversations, padded on the right.

    `sequence_ids_NS` are all tokens, `length_N` their number, and `picture_NS` (bool) the picture's, its markers
    included. `text_place_NL` and `visual_place_NR` say where the text's and the picture's states lie among them, and
    `packing` how an example's conversations lie in one row.
    `pixels` holds the pictures one after the other, `num_pixels` the rows of each. `answers` are asked about in turn.
    `said_NL` (bool) and `spoken_of_NR` (float) are what `agreement_score.py` reads, None where it is not asked.
    """

    picture_field: ClassVar[str] = "pixels"
    blank_value: ClassVar[int] = 127

    sequence_ids_NS: torch.Tensor
    length_N: torch.Tensor
    picture_NS: torch.Tensor
    text_place_NL: torch.Tensor
    visual_place_NR: torch.Tensor
    packing: Packing
    pixels: torch.Tensor
    num_pixels: tuple[int, ...]
    answers: tuple[Answers, ...] = ()
    num_answers: int = 1
    length_normalised: bool = False
    said_NL: torch.Tensor | None = None
    spoken_of_NR: torch.Tensor | None = None

    def to(self, device: torch.device) -> Self:
        self.answers = tuple(one.to(device) for one in self.answers)
        self.packing = self.packing.to(device)
        return super().to(device)


def chat_batch(
    rows: Sequence[ChatRow],
    pictures: Sequence[Picture],
    *,
    num_candidates: tuple[int, ...],
    image_token_id: int,
    pad_id: int,
    answers_inside_rows: bool,
    length_normalised: bool,
) -> ChatBatch:
    """Lay out conversations, of which each holds its picture's tokens.

    Args:
        rows: of all candidates of all examples.
        pictures: one for each example.
        answers_inside_rows: each row ends in the answer that is asked about.
    """
    size = max(len(row.token_ids) for row in rows)
    tokens = [np.array(row.token_ids) for row in rows]
    pictured = [(np.arange(size) >= row.picture_start) & (np.arange(size) < row.picture_end) for row in rows]
    text = [np.flatnonzero(~shown[: len(ids)]) for ids, shown in zip(tokens, pictured, strict=True)]
    visual = [
        np.flatnonzero(shown[: len(ids)] & (ids == image_token_id))
        for ids, shown in zip(tokens, pictured, strict=True)
    ]
    text_place, text_mask = _places(text)
    visual_place, visual_mask = _places(visual)
    spans = [np.array(row.spans)[place] for row, place in zip(rows, text, strict=True)]
    sequence_ids = padded(tokens, pad_id)
    inside = [row.token_ids for row in rows], [row.prompt_length for row in rows]
    places = [torch.from_numpy(picture.places_R4) for picture in pictures]
    return ChatBatch(
        num_candidates=num_candidates,
        token_ids_NL=torch.where(text_mask, sequence_ids.gather(1, text_place), pad_id),
        token_mask_NL=text_mask,
        char_spans_NL2=padded(spans, 0),
        visual_mask_NR=visual_mask,
        box_index_NR=torch.full(visual_mask.shape, -1),
        places_BR4=pad_sequence(places, batch_first=True, padding_value=torch.nan),
        sequence_ids_NS=sequence_ids,
        length_N=torch.tensor([len(row.token_ids) for row in rows]),
        picture_NS=torch.from_numpy(np.stack(pictured)),
        text_place_NL=text_place,
        visual_place_NR=visual_place,
        packing=packing(num_candidates, np.array([len(ids) for ids in tokens]), visual, sequence_ids.numpy()),
        pixels=torch.cat([picture.pixels for picture in pictures]),
        num_pixels=tuple(len(picture.pixels) for picture in pictures),
        answers=(answers_inside(*inside),) if answers_inside_rows else (),
        length_normalised=length_normalised,
    )


def _places(rows: Sequence[npt.NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places, padded with 0, and which of them are real."""
    mask = padded([np.ones(len(row), dtype=np.int64) for row in rows], 0).bool()
    return padded(rows, 0), mask
