"""Mean-pool token states to words.

Shapes: N sequences, L tokens, W words, D width.
"""

from __future__ import annotations

import torch


def pool_to_words(
    states_NLD: torch.Tensor, word_of_token_NL: torch.Tensor, num_words: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the tokens of each word.

    Args:
        states_NLD: token states.
        word_of_token_NL: int64, the word of each token, -1 for none.
        num_words: W.

    Returns:
        (N, W, D) word states, zeros where a word has no token, and (N, W) bool, whether it has one.
    """
    num_sequences, _, width = states_NLD.shape
    # Tokens without a word go to a bucket of their own, dropped at the end.
    bucket_NL = torch.where(word_of_token_NL >= 0, word_of_token_NL, num_words)
    sums = states_NLD.new_zeros(num_sequences, num_words + 1, width)
    sums = sums.scatter_add(1, bucket_NL[..., None].expand(-1, -1, width), states_NLD)
    counts = states_NLD.new_zeros(num_sequences, num_words + 1)
    counts = counts.scatter_add(1, bucket_NL, torch.ones_like(bucket_NL, dtype=counts.dtype))[:, :num_words]
    return sums[:, :num_words] / counts.clamp(min=1)[..., None], counts > 0
