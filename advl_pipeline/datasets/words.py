"""Words of a text, and the alignment of any tokenizer's tokens to them by character offsets.

Student and teacher tokenise differently; both are pooled to the same words of the same canonical text. A word is a
maximal run of letters, digits and marks, with inner apostrophes; everything else that is not white space is a
one-character word of punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*|[^\w\s]|_")
"""A run of word characters with inner apostrophes, or one punctuation character."""

NO_WORD = -1


@lru_cache(maxsize=65536)
def word_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return the [start, end) characters of each word of a text, in order."""
    return tuple(match.span() for match in WORD.finditer(text))


def assign_tokens_to_words(
    char_spans_L2: npt.NDArray[Any], words: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Return (L,): the word that each token of one text overlaps most; see `align_tokens_to_words`."""
    word_of_token_L: npt.NDArray[np.int64] = align_tokens_to_words(char_spans_L2[None], [words])[0]
    return word_of_token_L


def align_tokens_to_words(
    char_spans_NL2: npt.NDArray[Any], words: Sequence[Sequence[tuple[int, int]]]
) -> npt.NDArray[np.int64]:
    """Return (N, L): the word of its text that each token overlaps most, the earlier one on a tie, or -1.

    Args:
        char_spans_NL2: [start, end) of each token; empty spans (special tokens, padding) belong to no word. Spans may
            include white space before the word, as some tokenizers report them.
        words: of each text, non-overlapping spans in order, such as `word_spans` returns.
    """
    num_words = max((len(spans) for spans in words), default=0)
    if num_words == 0 or char_spans_NL2.shape[1] == 0:
        return np.full(char_spans_NL2.shape[:2], NO_WORD, dtype=np.int64)
    # A word that a text does not have is [0, 0): no token overlaps it.
    words_NW2 = np.zeros((len(words), num_words, 2), dtype=np.int32)
    for row, spans in enumerate(words):
        words_NW2[row, : len(spans)] = np.asarray(spans, dtype=np.int32).reshape(-1, 2)
    start_NL1, end_NL1 = (char_spans_NL2[..., edge : edge + 1].astype(np.int32) for edge in (0, 1))
    overlap_NLW = np.minimum(end_NL1, words_NW2[:, None, :, 1]) - np.maximum(start_NL1, words_NW2[:, None, :, 0])
    best_NL1 = overlap_NLW.argmax(2)[..., None]
    is_found_NL1 = (np.take_along_axis(overlap_NLW, best_NL1, 2) > 0) & (end_NL1 > start_NL1)
    word_of_token_NL: npt.NDArray[np.int64] = np.where(is_found_NL1, best_NL1, NO_WORD)[..., 0]
    return word_of_token_NL
