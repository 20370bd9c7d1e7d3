"""A text tower of which only some tokens are kept.

A cache may hold only the tokens of texts that are chosen so that all words come up about as often (docs/method.md,
cover). Global features are of the whole text.
Shapes: W words and M token rows of a text.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedUnit(PreparedUnit):
    """A unit of which some tokens are kept; `full` is what the tower itself prepared."""

    full: PreparedUnit


class SelectingTextTower:
    """A text tower whose token rows are those of some words. Its global features are untouched.

    Tokens that belong to no word, such as special ones, are not kept.
    """

    def __init__(self, tower: TextTower, keeps: CoveringTexts) -> None:
        self._tower = tower
        self.global_dim, self.token_dim = tower.global_dim, tower.token_dim
        self._keeps = keeps

    def describe(self) -> dict[str, Any]:
        """As the tower, and which tokens are kept."""
        return {**self._tower.describe(), **self._keeps.describe()}

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """As the tower, with the rows and spans of the kept tokens."""
        selected: list[PreparedUnit] = []
        for unit, full in zip(units, self._tower.prepare(units), strict=True):
            if full.char_spans_M2 is None:
                raise ValueError("a text tower gives the characters of each token")
            word_of_token = assign_tokens_to_words(full.char_spans_M2, word_spans(unit.text))
            kept_M = np.flatnonzero(np.isin(word_of_token, self._keeps.words(unit))).astype(np.int32)
            spans_M2 = full.char_spans_M2[kept_M]
            selected.append(
                SelectedUnit(
                    inputs=full.inputs,
                    num_tokens=len(kept_M),
                    char_spans_M2=spans_M2,
                    kept_M=kept_M,
                    is_known=full.is_known,
                    full=full,
                )
            )
        return selected

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode whole texts; return the rows that are kept."""
        selected = [unit for unit in units if isinstance(unit, SelectedUnit)]
        if len(selected) != len(units):
            raise TypeError("units must come from `prepare` of this tower")
        encoded = self._tower.encode([unit.full for unit in selected])
        return EncodedBatch(
            global_ND=encoded.global_ND,
            token_values=[
                rows[torch.from_numpy(unit.kept_M).to(rows.device)]
                for rows, unit in zip(encoded.token_values, selected, strict=True)
            ],
            stats=encoded.stats,
        )


def cover(words_of_texts: Sequence[Sequence[Hashable]], share: float) -> list[int]:
    """Return the texts that are chosen, in the order in which they are; the earlier one on a tie.

    Greedy: t* = argmax_t of the mean, over the words j of t, of 2^(-n(j)), with n(j) how often word j was chosen,
    until the share rho of all words is chosen. Words with a meaning count, known or not: it needs no student.

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

    # Gains only fall, so that one which is still the largest when it is looked up again is the largest of all.
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
    def of_dataset(cls, dataset: Dataset, share: float) -> CoveringTexts:
        """Choose among the texts of each task of a split, since a run of one task reads no others."""
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
        return cls(share=share, chosen=frozenset(chosen))

    def describe(self) -> dict[str, Any]:
        """Return what is kept, for the identity of a cache."""
        kept = "greedy cover of the words with a meaning, of each task"
        return {"kept_texts": {"share": self.share, "texts": kept, "stop_words": digest(sorted(STOP_WORDS))}}

    def words(self, unit: TextUnit) -> npt.NDArray[np.int64]:
        """Return the words of a text whose tokens are kept, ascending."""
        if unit.unit_id not in self.chosen:
            return np.zeros(0, np.int64)
        return np.flatnonzero([not is_function_word(word) for word in _lower_words(unit)])


def _lower_words(unit: TextUnit) -> list[str]:
    return [unit.text[start:end].lower() for start, end in word_spans(unit.text)]
