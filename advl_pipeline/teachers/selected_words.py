"""Caches with some of the text tokens: those of the words with the highest prior (docs/method.md).

Shapes: W words of a text, M tokens that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from advl_pipeline.cache.identity import digest
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import TextUnit
from advl_pipeline.datasets.words import (
    STOP_WORDS,
    WordPrior,
    assign_tokens_to_words,
    fit_word_prior,
    top_words,
    word_spans,
)
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, TextTower


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedUnit(PreparedUnit):
    """A unit of which some tokens are kept; `full` is what the tower itself prepared."""

    full: PreparedUnit


class SelectingTextTower:
    """A text tower whose token rows are those of the words with the highest prior. Its global features are untouched.

    Tokens that belong to no word, such as special ones, are not kept. A text has ceil(share * W) kept words.
    """

    def __init__(self, tower: TextTower, prior: WordPrior, *, share: float) -> None:
        self._tower = tower
        self.global_dim, self.token_dim = tower.global_dim, tower.token_dim
        self._prior = prior
        self._share = share

    def describe(self) -> dict[str, Any]:
        """As the tower, and which tokens are kept. The texts behind the prior are the dataset's, named elsewhere."""
        kept = {
            "share": self._share,
            "words": "highest IDF over the candidates of the split",
            "stop_words": digest(sorted(STOP_WORDS)),
        }
        return {**self._tower.describe(), "kept_tokens": kept}

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        """As the tower, with the rows and spans of the kept tokens."""
        return [self._select(unit, full) for unit, full in zip(units, self._tower.prepare(units), strict=True)]

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        """Encode whole texts; return the rows that are kept."""
        selected = [unit for unit in units if isinstance(unit, SelectedUnit)]
        if len(selected) != len(units):
            raise TypeError("units must come from `prepare` of this tower")
        encoded = self._tower.encode([unit.full for unit in selected])
        return EncodedBatch(
            global_ND=encoded.global_ND,
            token_values=[
                rows[torch.from_numpy(unit.kept_M)] for rows, unit in zip(encoded.token_values, selected, strict=True)
            ],
            stats=encoded.stats,
        )

    def _select(self, unit: TextUnit, full: PreparedUnit) -> SelectedUnit:
        if full.char_spans_M2 is None:
            raise ValueError("a text tower gives the characters of each token")
        word_of_token = assign_tokens_to_words(full.char_spans_M2, word_spans(unit.text))
        words = top_words(self._prior.of_text(unit.text), self._share)
        kept_M = np.flatnonzero(np.isin(word_of_token, words)).astype(np.int32)
        return SelectedUnit(
            inputs=full.inputs,
            num_tokens=len(kept_M),
            char_spans_M2=full.char_spans_M2[kept_M],
            kept_M=kept_M,
            full=full,
        )


def fit_split_prior(dataset: Dataset) -> WordPrior:
    """Return the prior over all candidates of a split: what finetuning on the whole split fits."""
    return fit_word_prior(
        candidate.text
        for example in map(dataset.__getitem__, range(len(dataset)))
        for candidate in example.candidates
    )
