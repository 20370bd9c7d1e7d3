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
    """Return (L,): the word that each token overlaps most, the earlier one on a tie, or -1.

    Args:
        char_spans_L2: [start, end) of each token; empty spans (special tokens, padding) belong to no word. Spans may
            include white space before the word, as some tokenizers report them.
        words: non-overlapping spans in order, such as `word_spans` returns.
    """
    assigned = np.full(len(char_spans_L2), NO_WORD, dtype=np.int64)
    if not words or not len(char_spans_L2):
        return assigned
    words_W2 = np.asarray(words, dtype=np.int64)
    spans = char_spans_L2.astype(np.int64)
    overlap_LW = np.minimum(spans[:, 1:2], words_W2[:, 1]) - np.maximum(spans[:, :1], words_W2[:, 0])
    overlap_LW = np.where((spans[:, 1] > spans[:, 0])[:, None], overlap_LW, 0)
    best = overlap_LW.argmax(1)
    found = overlap_LW[np.arange(len(spans)), best] > 0
    assigned[found] = best[found]
    return assigned
