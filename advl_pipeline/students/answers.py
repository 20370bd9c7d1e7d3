"""Answers in words, scored by their likelihood.

Shapes: N sequences, Q foretold tokens, K answers, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

TOKENS_AT_ONCE = 512
"""Tokens behind a sequence; longer lists of answers take several passes."""

ROWS_AT_ONCE = 2048
"""States whose words are scored at once: 400 MB in float32 for 49,280 words."""


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
    states_QH: torch.Tensor,
    target_Q: torch.Tensor,
    answer_Q: torch.Tensor,
    words: Callable[[torch.Tensor], torch.Tensor],
    num_sequences: int,
    num_answers: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-likelihoods (N, K), float32, and how many tokens (N, K) each is a sum over.

    Args:
        states_QH: last states of the tokens that foretell.
        target_Q: int64, the tokens that are foretold.
        answer_Q: int64, whose these are: answers are counted over all sequences.
        words: from states to the logits of all words.
        num_sequences: N.
        num_answers: K.
    """
    log_likelihoods = [states_QH.new_zeros(0, dtype=torch.float32)]
    for first in range(0, len(target_Q), ROWS_AT_ONCE):
        logits = words(states_QH[first : first + ROWS_AT_ONCE]).float()
        log_likelihoods.append(
            -nn.functional.cross_entropy(logits, target_Q[first : first + ROWS_AT_ONCE], reduction="none")
        )
    total = states_QH.new_zeros(num_sequences * num_answers, dtype=torch.float32)
    number = torch.zeros_like(total, dtype=torch.int64)
    total = total.index_put((answer_Q,), torch.cat(log_likelihoods), accumulate=True)
    number = number.index_put((answer_Q,), torch.ones_like(answer_Q), accumulate=True)
    return total.view(num_sequences, num_answers), number.view(num_sequences, num_answers)
