"""Words of a text, and the alignment of any tokenizer's tokens to them by character offsets.

Student and teacher tokenise differently; both are pooled to the same words of the same canonical text. A word is a
maximal run of letters, digits and marks, with inner apostrophes. Every other character that is not white space is a
punctuation word of its own.

The inverse document frequency on the task's training text measures how informative a word is without the picture
(docs/method.md, prior_j: 0 for stop words and punctuation; our reading of the paper's token selection).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*|[^\w\s]|_")
"""A run of word characters with inner apostrophes, or one punctuation character."""

NO_WORD = -1


@lru_cache(maxsize=65536)
def word_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return the [start, end) characters of each word of a text, in order."""
    spans = [match.span() for match in WORD.finditer(text)]
    return tuple(spans if text.isascii() else _with_marks(spans, text))


def _with_marks(spans: Iterable[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Join words with the marks after their letters, which the regular expression treats as punctuation."""
    joined: list[tuple[int, int]] = []
    goes_on = False
    for start, end in spans:
        is_mark = unicodedata.category(text[start]).startswith("M")
        follows = bool(joined) and joined[-1][1] == start and text[joined[-1][0]].isalnum()
        if follows and (is_mark or (goes_on and text[start].isalnum())):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
        goes_on = is_mark and follows
    return joined


def assign_tokens_to_words(
    char_spans_L2: npt.NDArray[Any], words: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Return (L,): for each token of one text, the word that it overlaps most; see `align_tokens_to_words`."""
    word_of_token_L: npt.NDArray[np.int64] = align_tokens_to_words(char_spans_L2[None], [words])[0]
    return word_of_token_L


def align_tokens_to_words(
    char_spans_NL2: npt.NDArray[Any], words: Sequence[Sequence[tuple[int, int]]]
) -> npt.NDArray[np.int64]:
    """Return (N, L): for each token, the word of its text that it overlaps most, the earlier one on a tie, or -1.

    Args:
        char_spans_NL2: [start, end) of each token; empty spans (special tokens, padding) belong to no word. Spans may
            include white space before the word, as some tokenizers report them.
        words: for each text, non-overlapping spans in order, such as `word_spans` returns.
    """
    num_words = max((len(spans) for spans in words), default=0)
    if num_words == 0 or char_spans_NL2.shape[1] == 0:
        return np.full(char_spans_NL2.shape[:2], NO_WORD, dtype=np.int64)
    # Padding words are [0, 0): no token overlaps them.
    words_NW2 = np.zeros((len(words), num_words, 2), dtype=np.int32)
    for row, spans in enumerate(words):
        words_NW2[row, : len(spans)] = np.asarray(spans, dtype=np.int32).reshape(-1, 2)
    start_NL1, end_NL1 = (char_spans_NL2[..., edge : edge + 1].astype(np.int32) for edge in (0, 1))
    overlap_NLW = np.minimum(end_NL1, words_NW2[:, None, :, 1]) - np.maximum(start_NL1, words_NW2[:, None, :, 0])
    best_NL1 = overlap_NLW.argmax(2)[..., None]
    is_found_NL1 = (np.take_along_axis(overlap_NLW, best_NL1, 2) > 0) & (end_NL1 > start_NL1)
    word_of_token_NL: npt.NDArray[np.int64] = np.where(is_found_NL1, best_NL1, NO_WORD)[..., 0]
    return word_of_token_NL


STOP_WORDS = frozenset(
    """
    a about above after again all also am an and any are as at be because been before being below between both but
    by can could did do does doing down during each few for from further had has have having he her here hers him his
    how i if in into is it its just me more most my no nor not of off on once only or other our ours out over own same
    she should so some such than that the their theirs them then there these they this those through to too under
    until up very was we were what when where which while who whom why will with would you your yours
    """.split()
)
"""English function words. Punctuation counts as a function word."""

ROUNDING = 1e-6
"""Tolerance for a share of words such as 0.3 * 10, which must not be rounded up to 4."""


_FREQUENT_SHARE = 0.02
_FREQUENT_TEXTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class WordPrior:
    """IDF of lower-cased words over a set of texts; unseen words get the largest value."""

    idf: Mapping[str, float]
    unseen: float

    @property
    def frequent_below(self) -> float:
        """Threshold of the prior: words below it occur in more than 2 % of the texts and in more than five of them.

        Such words are the task's function words, for example those of a repeated question.
        """
        num_texts = math.exp(self.unseen - 1.0) - 1.0
        most = max(_FREQUENT_TEXTS, _FREQUENT_SHARE * num_texts)
        return math.log((1 + num_texts) / (1 + most)) + 1.0

    def of_text(self, text: str) -> npt.NDArray[np.float32]:
        """Return (W,) the prior of each word of `word_spans(text)`."""
        words = (text[start:end].lower() for start, end in word_spans(text))
        priors = [0.0 if is_function_word(word) else self.idf.get(word, self.unseen) for word in words]
        return np.array(priors, dtype=np.float32)


WordClass = Literal["landmark", "held", "moved"]
"""A word that pretraining taught, one for which that is undecided, and one that it did not teach."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownWords:
    """Familiarity of words to a pretrained student, from a record of its pretraining or from classes of words.

    A record gives counts: familiarity is count / (count + `half`), 0 for a word without a count. Classes are
    estimated from the student, or listed by hand; a word without a class is held. Without either, every word counts
    as known.
    """

    counts: Mapping[str, int] | None = None
    classes: Mapping[str, WordClass] | None = None
    half: float = 5.0

    @property
    def is_given(self) -> bool:
        """Whether anything says what pretraining taught."""
        return self.counts is not None or self.classes is not None

    def of_word(self, word: str) -> float:
        """Return the familiarity of a lower-cased word in [0, 1]; held words and function words count as known."""
        if is_function_word(word):
            return 1.0
        if self.classes is not None:
            return 0.0 if self.classes.get(word) == "moved" else 1.0
        if self.counts is None:
            return 1.0
        count = self.counts.get(word, 0)
        return count / (count + self.half)

    def is_held(self, word: str) -> bool:
        """Return whether a lower-cased word is neither a landmark nor moved, because its class is undecided."""
        return self.classes is not None and self.classes.get(word, "held") == "held"


def is_function_word(word: str) -> bool:
    """Return whether a lower-cased word is a stop word or punctuation."""
    return word in STOP_WORDS or not any(character.isalnum() for character in word)


def fit_word_prior(texts: Iterable[str]) -> WordPrior:
    """Count the texts that contain each word; IDF = log((1 + n) / (1 + count)) + 1 (smoothed)."""
    counts: Counter[str] = Counter()
    num_texts = 0
    for text in texts:
        num_texts += 1
        counts.update({text[start:end].lower() for start, end in word_spans(text)})
    idf = {word: math.log((1 + num_texts) / (1 + count)) + 1.0 for word, count in counts.items()}
    return WordPrior(idf=idf, unseen=math.log(1 + num_texts) + 1.0)
