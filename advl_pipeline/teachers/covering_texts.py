"""Caches with the rows of some texts, chosen so that all words come up about as often (docs/method.md, cover).

Greedy over texts: t* = argmax_t of the mean, over the words j of t, of 2^(-n(j)), with n(j) how often word j was
chosen, until the share rho of all words is chosen. Words with a meaning count, known or not: it needs no student.
Shapes: W words of a text.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.identity import digest
from advl_pipeline.datasets.records import TextUnit
from advl_pipeline.datasets.words import ROUNDING, STOP_WORDS, is_function_word, word_spans


def cover(words_of_texts: Sequence[Sequence[Hashable]], share: float) -> list[int]:
    """Return the texts that are chosen, in the order in which they are; the earlier one on a tie.

    Args:
        words_of_texts: of each text; one without a word is never chosen.
        share: rho, of all words.
    """
    chosen: list[int] = []
    times: Counter[Hashable] = Counter()
    wanted = share * sum(map(len, words_of_texts)) - ROUNDING
    num_words = 0

    def gain(text: int) -> float:
        words = words_of_texts[text]
        return sum(2.0 ** -times[word] for word in words) / len(words)

    # Gains only fall, so that one which is still the largest when it is looked up anew is the largest of all.
    waiting = [(-1.0, text) for text, words in enumerate(words_of_texts) if words]
    heapq.heapify(waiting)
    while num_words < wanted:
        _, text = waiting[0]
        now = (-gain(text), text)
        if len(waiting) > 1 and now > min(waiting[1:3]):
            heapq.heapreplace(waiting, now)
            continue
        heapq.heappop(waiting)
        chosen.append(text)
        times.update(words_of_texts[text])
        num_words += len(words_of_texts[text])
    return chosen


@dataclass(frozen=True, kw_only=True)
class CoveringTexts:
    """Keeps the words with a meaning of the texts that were chosen, and nothing of the others."""

    share: float
    chosen: frozenset[str]

    @classmethod
    def of_texts(cls, units: Iterable[TextUnit], share: float) -> CoveringTexts:
        """Choose among the texts of a split."""
        units = list(units)
        words = [
            [
                word
                for start, end in word_spans(unit.text)
                if not is_function_word(word := unit.text[start:end].lower())
            ]
            for unit in units
        ]
        return cls(share=share, chosen=frozenset(units[text].unit_id for text in cover(words, share)))

    def describe(self) -> dict[str, Any]:
        """Return what is kept, for the identity of a cache."""
        kept = {
            "share": self.share,
            "texts": "greedy cover of the words with a meaning",
            "stop_words": digest(sorted(STOP_WORDS)),
        }
        return {"kept_texts": kept}

    def words(self, unit: TextUnit) -> npt.NDArray[np.int64]:
        """Return the words of a text whose tokens are kept, ascending."""
        if unit.unit_id not in self.chosen:
            return np.zeros(0, np.int64)
        words = [unit.text[start:end].lower() for start, end in word_spans(unit.text)]
        return np.flatnonzero([not is_function_word(word) for word in words])
