"""Conversations about pictures as tensors: where the text lies, where the picture, and which answers are asked about.

Shapes: B examples, N sequences, S tokens of a sequence, L of them text, R of them picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(kw_only=True)
class ChatBatch(StudentBatch):
    """Conversations, padded on the right.

    `sequence_ids_NS` are all tokens, `length_N` their number, and `picture_NS` (bool) the picture's, its markers
    included. `text_place_NL` and `visual_place_NR` say where the text's and the picture's states lie among them.
    `pixels` holds the pictures one after the other, `num_pixels` the rows of each. `answers` are asked about in turn.
    """

    picture_field: ClassVar[str] = "pixels"
    blank_value: ClassVar[int] = 127

    sequence_ids_NS: torch.Tensor
    length_N: torch.Tensor
    picture_NS: torch.Tensor
    text_place_NL: torch.Tensor
    visual_place_NR: torch.Tensor
    pixels: torch.Tensor
    num_pixels: tuple[int, ...]
    answers: tuple[Answers, ...] = ()
    num_answers: int = 1
    length_normalised: bool = False

    def to(self, device: torch.device) -> Self:
        self.answers = tuple(one.to(device) for one in self.answers)
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
        pixels=torch.cat([picture.pixels for picture in pictures]),
        num_pixels=tuple(len(picture.pixels) for picture in pictures),
        answers=(answers_inside(*inside),) if answers_inside_rows else (),
        length_normalised=length_normalised,
    )


def _places(rows: Sequence[npt.NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places, padded with 0, and which of them are real."""
    mask = padded([np.ones(len(row), dtype=np.int64) for row in rows], 0).bool()
    return padded(rows, 0), mask
