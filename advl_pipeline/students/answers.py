"""Answers in words, scored by their likelihood: which token of a sequence foretells which.

Answers that are not in the sequence itself lie behind it, side by side. Each sees the sequence and itself alone, at
the positions that it would have as the only one, so that one pass scores them all.

Shapes: N sequences, S tokens of a sequence, T tokens of the answers behind it, Q foretold tokens, K answers, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.datasets.records import Candidate
from advl_pipeline.datasets.words import is_function_word, word_spans

TOKENS_AT_ONCE = 512
"""Tokens behind a sequence; longer lists of answers take several passes."""

ROWS_AT_ONCE = 2048
"""States whose words are scored at once: 400 MB in float32 for 49,280 words."""


@dataclass(kw_only=True)
class Answers:
    """The answers of one pass, all int64, padded with -1 in `block_NT` and `answer_NQ`.

    `block_NT` says which answer a token behind the sequence belongs to, `offset_NT` its place in it. Token
    `source_NQ` of sequence and answers together foretells `target_NQ`, a token of answer `answer_NQ`. `foretold_M`
    are the M of these N * Q places that are no padding.
    """

    token_ids_NT: torch.Tensor
    block_NT: torch.Tensor
    offset_NT: torch.Tensor
    source_NQ: torch.Tensor
    target_NQ: torch.Tensor
    answer_NQ: torch.Tensor
    foretold_M: torch.Tensor


Row = Mapping[str, npt.NDArray[np.int64]]
"""Fields of `Answers`, of one sequence."""


def _padded(rows: Sequence[Row]) -> Answers:
    padding = {"block_NT": -1, "answer_NQ": -1}
    fields = {name: padded([row[name] for row in rows], padding.get(name, 0)) for name in rows[0]}
    return Answers(**fields, foretold_M=torch.nonzero(fields["answer_NQ"].flatten() >= 0)[:, 0])


def answers_inside(token_ids: Sequence[npt.NDArray[np.int64]], starts: Sequence[int]) -> Answers:
    """Return the answers that end their own sequences, each from its start on; nothing lies behind the sequences."""
    none = np.zeros(0, dtype=np.int64)
    behind = {"token_ids_NT": none, "block_NT": none, "offset_NT": none}
    return _padded(
        [
            {
                **behind,
                "source_NQ": np.arange(start - 1, len(ids) - 1),
                "target_NQ": ids[start:],
                "answer_NQ": np.zeros(len(ids) - start, dtype=np.int64),
            }
            for ids, start in zip(token_ids, starts, strict=True)
        ]
    )


def answers_behind(
    wanted: Sequence[Sequence[tuple[int, Sequence[int]]]], last: Sequence[int], size: int, end_id: int
) -> Answers:
    """Lay answers out behind their sequences.

    Args:
        wanted: for each sequence its answers: number and tokens, without the token that ends them.
        last: last token of each sequence, which foretells every answer's first.
        size: S, from which the tokens of the answers are counted.
        end_id: token that ends an answer; it is foretold, and no token follows it.
    """
    rows: list[Row] = []
    for answers, place in zip(wanted, last, strict=True):
        lengths = np.array([len(ids) for _, ids in answers], dtype=np.int64)
        numbers = np.array([number for number, _ in answers], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        tokens = np.array([token for _, ids in answers for token in ids], dtype=np.int64)
        rows.append(
            {
                "token_ids_NT": tokens,
                "block_NT": np.repeat(np.arange(len(answers)), lengths),
                "offset_NT": np.arange(len(tokens)) - np.repeat(starts, lengths),
                # A token foretells the one after it; before the first stands the sequence's last, after the last
                # the end.
                "source_NQ": np.insert(size + np.arange(len(tokens)), starts, place),
                "target_NQ": np.insert(tokens, starts + lengths, end_id),
                "answer_NQ": np.repeat(numbers, lengths + 1),
            }
        )
    return _padded(rows)


def parts_of_list(answers: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, Sequence[int]]]]:
    """Cut a list of answers into parts of at most `TOKENS_AT_ONCE` tokens; every answer keeps its number."""
    part: list[tuple[int, Sequence[int]]] = []
    size = 0
    for number, ids in enumerate(answers):
        if part and size + len(ids) > TOKENS_AT_ONCE:
            yield part
            part, size = [], 0
        part.append((number, ids))
        size += len(ids)
    yield part


def sum_likelihoods(
    answers: Answers, states_MH: torch.Tensor, words: Callable[[torch.Tensor], torch.Tensor], num_answers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-likelihoods (N, K), float32, and how many tokens (N, K) each is a sum over.

    Args:
        states_MH: last states of the tokens that foretell, in the order of `foretold_M`.
        words: from states to the logits of all words.
        num_answers: K.
    """
    num_sequences, num_places = answers.answer_NQ.shape
    rows_M = answers.foretold_M // max(1, num_places)
    targets_M = answers.target_NQ.flatten()[answers.foretold_M]
    log_likelihoods = [states_MH.new_zeros(0, dtype=torch.float32)]
    for first in range(0, len(targets_M), ROWS_AT_ONCE):
        logits = words(states_MH[first : first + ROWS_AT_ONCE]).float()
        log_likelihoods.append(
            -nn.functional.cross_entropy(logits, targets_M[first : first + ROWS_AT_ONCE], reduction="none")
        )
    place = (rows_M, answers.answer_NQ.flatten()[answers.foretold_M])
    total_NK = states_MH.new_zeros(num_sequences, num_answers, dtype=torch.float32)
    number_NK = torch.zeros_like(total_NK, dtype=torch.int64)
    return (
        total_NK.index_put(place, torch.cat(log_likelihoods), accumulate=True),
        number_NK.index_put(place, torch.ones_like(rows_M), accumulate=True),
    )


def padded(rows: Sequence[npt.NDArray[np.generic]], value: int) -> torch.Tensor:
    """Return whole numbers of one or more rows, of which shorter ones end in `value`."""
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


def agreement(
    text_NLH: torch.Tensor, said_NL: torch.Tensor, visual_NRH: torch.Tensor, place_NR: torch.Tensor
) -> torch.Tensor:
    """Return (N,) cosines of the mean state of what is said and that of what it is said of; 0 without either.

    Args:
        said_NL: bool, the tokens that say something.
        place_NR: float, shares of the picture's tokens in what the text speaks of.
    """
    share_NL = said_NL.float() / said_NL.sum(1, keepdim=True).clamp(min=1)
    said_NH = torch.einsum("nl,nlh->nh", share_NL, text_NLH.float())
    shown_NH = torch.einsum("nr,nrh->nh", place_NR.float(), visual_NRH.float())
    return functional.cosine_similarity(said_NH, shown_NH, dim=-1)


def said_tokens(candidates: Sequence[Candidate], char_spans_NL2: torch.Tensor) -> torch.Tensor:
    """Return (N, L) bool: the tokens of each answer's words with a meaning, of all its words where none has one."""
    said_NL = torch.zeros(char_spans_NL2.shape[:2], dtype=torch.bool)
    start_NL, end_NL = char_spans_NL2.unbind(2)
    for row, candidate in enumerate(candidates):
        words = [span for span in word_spans(candidate.text) if span[0] >= candidate.answer_start]
        meant = [span for span in words if not is_function_word(candidate.text[slice(*span)].lower())]
        for first, last in meant or words:
            said_NL[row] |= (start_NL[row] < last) & (end_NL[row] > first)
    return said_NL
