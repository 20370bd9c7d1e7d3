"""A text tower that keeps only some tokens.

A cache may store the tokens of selected texts only, chosen so that all words occur about equally often
(docs/method.md, cover). Global features always cover the complete text.
Shapes: W words and M token rows of a text.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from advl_pipeline.cache.identity import digest
from advl_pipeline.datasets.records import Dataset, Task, TextUnit
from advl_pipeline.datasets.words import (
    ROUNDING,
    STOP_WORDS,
    assign_tokens_to_words,
    is_function_word,
    word_spans,
)
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, TextTower


class SelectingTextTower:
    """A text tower whose token rows are the content words of the chosen texts; other texts have no token rows.

    Its global features are unchanged. Tokens outside words, such as special ones, are dropped.

    Args:
        chosen: ids of the texts, as returned by `covering_texts` for the share.
    """

    def __init__(self, tower: TextTower, chosen: Collection[str], share: float) -> None:
        self._tower = tower
        self.global_dim, self.token_dim = tower.global_dim, tower.token_dim
        self._chosen, self._share = chosen, share

    def describe(self) -> dict[str, Any]:
        """Return the tower's description and the kept tokens."""
        kept = "greedy cover of the words with a meaning, of each task"
        how = {"share": self._share, "texts": kept, "stop_words": digest(sorted(STOP_WORDS))}
        return {**self._tower.describe(), "kept_texts": how}

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """Prepare units as the tower does, with the rows and spans of the kept tokens only."""
        selected: list[PreparedUnit] = []
        for unit, full in zip(units, self._tower.prepare(units), strict=True):
            if full.char_spans_M2 is None:
                raise ValueError("a text tower must give the characters of each token")
            words = [not is_function_word(word) and unit.unit_id in self._chosen for word in _lower_words(unit)]
            word_of_token = assign_tokens_to_words(full.char_spans_M2, word_spans(unit.text))
            kept_M = np.flatnonzero(np.isin(word_of_token, np.flatnonzero(words))).astype(np.int32)
            spans_M2 = full.char_spans_M2[kept_M]
            selected.append(replace(full, num_tokens=len(kept_M), char_spans_M2=spans_M2, kept_M=kept_M, full=full))
        return selected

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode complete texts; return the kept rows."""
        encoded = self._tower.encode([unit.full or unit for unit in units])
        kept = [torch.from_numpy(unit.kept_M).to(encoded.global_ND.device) for unit in units]
        values = [rows[kept_M] for rows, kept_M in zip(encoded.token_values, kept, strict=True)]
        return replace(encoded, token_values=values)


def cover(words_of_texts: Sequence[Sequence[Hashable]], share: float) -> list[int]:
    """Return the indices of the chosen texts, in order of selection; a tie goes to the earlier text.

    Greedy: t* = argmax_t of the mean, over the words j of t, of 2^(-n(j)), where n(j) counts how often word j was
    chosen, until a fraction rho of all words is chosen. Every content word counts, so no student is needed.

    Args:
        words_of_texts: the words of each text; a text without words is never chosen.
        share: rho, the fraction of all words.
    """
    chosen: list[int] = []
    times: Counter[Hashable] = Counter()
    wanted = share * sum(map(len, words_of_texts)) - ROUNDING
    num_words = 0

    def gain(text: int) -> float:
        words = words_of_texts[text]
        return sum(2.0 ** -times[word] for word in words) / len(words)

    # Gains only decrease, so a gain that is still the largest when recomputed is the largest of all.
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


def covering_texts(dataset: Dataset, share: float) -> frozenset[str]:
    """Return the ids of the chosen texts, selected per task of a split, since a run reads the texts of one task."""
    of_tasks: dict[Task, dict[str, list[str]]] = {}
    for task, candidates in map(dataset.candidates_of, range(len(dataset))):
        words_of = of_tasks.setdefault(task, {})
        for unit in (candidate.text_unit for candidate in candidates):
            if unit.unit_id not in words_of:
                words_of[unit.unit_id] = [word for word in _lower_words(unit) if not is_function_word(word)]
    chosen: set[str] = set()
    for words_of in of_tasks.values():
        ids = list(words_of)
        chosen.update(ids[text] for text in cover(list(words_of.values()), share))
    return frozenset(chosen)


def _lower_words(unit: TextUnit) -> list[str]:
    return [unit.text[start:end].lower() for start, end in word_spans(unit.text)]
