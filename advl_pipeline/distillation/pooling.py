"""Means: of tokens to words, of visual states to regions or a picture, of sequences to examples.

Shapes: B examples, N sequences, L tokens, R visual tokens, S regions, W words, D and H widths.
"""

from __future__ import annotations

import torch

from advl_pipeline.students.interface import StudentBatch, StudentOutput


def pool_to_words(states_NLD: torch.Tensor, word_of_token_NL: torch.Tensor, num_words: int) -> torch.Tensor:
    """Return (N, W, D): the mean over the tokens of each word, zeros where a word has none.

    Args:
        word_of_token_NL: int64, the word of each token, -1 for none.
        num_words: W.
    """
    num_sequences, _, width = states_NLD.shape
    # Tokens without a word go to an extra bucket that is dropped at the end. Adding rows takes half the time of
    # scattering single values.
    bucket_NL = torch.where(word_of_token_NL >= 0, word_of_token_NL, num_words)
    first_N1 = (num_words + 1) * torch.arange(num_sequences, device=bucket_NL.device)[:, None]
    bucket_X = (first_N1 + bucket_NL).flatten()
    num_buckets = num_sequences * (num_words + 1)
    sums_XD = states_NLD.new_zeros(num_buckets, width).index_add(0, bucket_X, states_NLD.flatten(0, 1))
    counts_X = states_NLD.new_zeros(num_buckets).index_add(0, bucket_X, states_NLD.new_ones(len(bucket_X)))
    sums_NWD, counts_NW = (
        values.view(num_sequences, num_words + 1, *values.shape[1:])[:, :num_words] for values in (sums_XD, counts_X)
    )
    return sums_NWD / counts_NW.clamp(min=1)[..., None]


def pool_to_regions(states_NRH: torch.Tensor, shares_NSR: torch.Tensor | None) -> torch.Tensor:
    """Return (N, S, H): the states of regions, zeros where no visual token has a share.

    Args:
        shares_NSR: as `VisionSignal.shares_BSR`; None where region s is visual token s.
    """
    return states_NRH if shares_NSR is None else shares_NSR.to(states_NRH.dtype) @ states_NRH


def image_state(output: StudentOutput, batch: StudentBatch) -> torch.Tensor:
    """Return (N, H): the student's whole-picture token when it has one, else the mean of its visual states."""
    if output.image_state_NH is not None:
        return output.image_state_NH
    mask = batch.visual_mask_NR[..., None].to(output.visual_states_NRH.dtype)
    return (output.visual_states_NRH * mask).sum(1) / mask.sum(1).clamp(min=1)


def mean_by_example(values_N: torch.Tensor, example_N: torch.Tensor, num_examples: int) -> torch.Tensor:
    """Return (B,): the mean over each example's sequences."""
    zero_B = values_N.new_zeros(num_examples)
    return zero_B.index_add(0, example_N, values_N) / zero_B.index_add(0, example_N, torch.ones_like(values_N))


def masked_mean(values_NW: torch.Tensor, mask_NW: torch.Tensor) -> torch.Tensor:
    """Return (N,): mean over the valid entries of each row, 0 for a row without any."""
    kept = torch.where(mask_NW, values_NW, torch.zeros_like(values_NW))
    return kept.sum(1) / mask_NW.sum(1).clamp(min=1)
