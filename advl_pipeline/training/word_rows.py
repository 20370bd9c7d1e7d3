"""A teacher's token rows as features of words: pooled by text, and their means by word over all texts that have rows.

Shapes: N texts, W words, M token rows, K words by spelling, D teacher width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.datasets.words import assign_tokens_to_words, word_spans
from advl_pipeline.training.stored_signals import Averages

TEXTS_AT_ONCE = 1024


class RowsOfTexts(Protocol):
    """What gives the token rows of texts by id."""

    def token_features(self, ids: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Return (M, D) rows one text after another, and the (N,) rows of each."""
        ...

    def char_spans(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return (M, 2) the characters that each row covers."""
        ...


def form_of(word: str) -> int:
    """Return the number of a lower-cased word's spelling."""
    return zlib.crc32(word.encode())


def word_averages(
    word_M: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int32], shape: tuple[int, ...]
) -> tuple[Averages, torch.Tensor]:
    """Average the rows of each word, as `pool_to_words` does, of texts that lie one after another without padding.

    Args:
        word_M: the word of its text that each row is of, -1 for none.
        lengths_N: how many rows each text has.
        shape: (N, W).

    Returns:
        The means, zeros where a word has no row, and (N, W) bool, whether it has one.
    """
    num_texts, num_words = shape
    row_X = np.flatnonzero(word_M >= 0)
    place_X = np.repeat(np.arange(num_texts), lengths_N)[row_X] * num_words + word_M[row_X]
    count_P = np.bincount(place_X, minlength=num_texts * num_words)
    averages = Averages(
        shape=shape,
        start_P1=torch.from_numpy(np.concatenate([[0], np.cumsum(count_P)]).astype(np.int32)),
        # A word's rows in their order, as they would be added up one by one.
        row_X=torch.from_numpy(row_X[np.argsort(place_X, kind="stable")].astype(np.int32)),
        weight_X=torch.ones(len(row_X)),
        count_P=torch.from_numpy(np.maximum(count_P, 1).astype(np.float32)),
    )
    return averages, torch.from_numpy(count_P > 0).view(*shape)


@dataclass(frozen=True, kw_only=True)
class WordMeans:
    """The mean feature (K, D) of each word, by the number of its spelling (K,), ascending."""

    form_K: npt.NDArray[np.int64]
    mean_KD: torch.Tensor

    def of(self, form_NW: torch.Tensor, missing_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, W) bool, which of the missing words have a mean, and these, (F, D), in order."""
        if not len(self.form_K):
            return torch.zeros_like(missing_NW), self.mean_KD
        asked_X = form_NW[missing_NW].numpy()
        place_X = np.searchsorted(self.form_K, asked_X).clip(max=len(self.form_K) - 1)
        found_X = torch.from_numpy(self.form_K[place_X] == asked_X)
        filled_NW = torch.zeros_like(missing_NW).masked_scatter(missing_NW, found_X)
        return filled_NW, self.mean_KD[torch.from_numpy(place_X)[found_X]]


def word_means(rows: RowsOfTexts, texts: Mapping[str, str]) -> WordMeans:
    """Return the means of a teacher's features by word, over the texts (unit id -> text) that have rows."""
    sums: dict[int, tuple[torch.Tensor, int]] = {}
    ids = list(texts)
    for first in range(0, len(ids), TEXTS_AT_ONCE):
        part = ids[first : first + TEXTS_AT_ONCE]
        values, lengths = rows.token_features(part)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        spans_M2 = rows.char_spans(part)
        for place in np.flatnonzero(lengths).tolist():
            text, own = texts[part[place]], slice(int(starts[place]), int(starts[place + 1]))
            words = word_spans(text)
            averages, has_1W = word_averages(
                assign_tokens_to_words(spans_M2[own], words), lengths[place : place + 1], (1, len(words))
            )
            pooled_1WD = averages.of(torch.from_numpy(np.array(values[own], dtype=np.float32)))
            for number in torch.nonzero(has_1W[0])[:, 0].tolist():
                form = form_of(text[slice(*words[number])].lower())
                total, count = sums.get(form, (torch.zeros(pooled_1WD.shape[2]), 0))
                sums[form] = (total + pooled_1WD[0, number], count + 1)
    forms = sorted(sums)
    means = [sums[form][0] / sums[form][1] for form in forms]
    return WordMeans(
        form_K=np.array(forms, dtype=np.int64), mean_KD=torch.stack(means) if means else torch.zeros(0, 1)
    )
