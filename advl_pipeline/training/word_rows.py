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
from scipy.sparse import csr_matrix

from advl_pipeline.datasets.words import assign_tokens_to_words, word_spans

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


def pool_rows_to_words(
    rows_MD: torch.Tensor, word_M: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int32], shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the rows of each word, as `pool_to_words` does, of texts that lie one after another without padding.

    Args:
        rows_MD: float32 token rows.
        word_M: the word of its text that each is of, -1 for none.
        lengths_N: how many rows each text has.
        shape: (N, W).

    Returns:
        (N, W, D) means, zeros where a word has no row, and (N, W) bool, whether it has one.
    """
    num_texts, num_words = shape
    row_M = np.flatnonzero(word_M >= 0)
    place_M = np.repeat(np.arange(num_texts), lengths_N)[row_M] * num_words + word_M[row_M]
    belongs = csr_matrix(
        (np.ones(len(row_M), np.float32), (place_M, row_M)), shape=(num_texts * num_words, len(word_M))
    )
    count_P = np.bincount(place_M, minlength=num_texts * num_words)
    means_PD = belongs @ rows_MD.numpy()
    means_PD /= np.maximum(count_P, 1).astype(np.float32)[:, None]
    return torch.from_numpy(means_PD).view(num_texts, num_words, -1), torch.from_numpy(count_P > 0).view(*shape)


@dataclass(frozen=True, kw_only=True)
class WordMeans:
    """The mean feature (K, D) of each word, by the number of its spelling (K,), ascending."""

    form_K: npt.NDArray[np.int64]
    mean_KD: torch.Tensor

    def fill(self, words_NWD: torch.Tensor, form_NW: torch.Tensor, missing_NW: torch.Tensor) -> torch.Tensor:
        """Write the means of missing words into the features, in place; return (N, W) bool, which were found."""
        if not len(self.form_K):
            return torch.zeros_like(missing_NW)
        asked_X = form_NW[missing_NW].numpy()
        place_X = np.searchsorted(self.form_K, asked_X).clip(max=len(self.form_K) - 1)
        found_X = torch.from_numpy(self.form_K[place_X] == asked_X)
        filled_NW = torch.zeros_like(missing_NW).masked_scatter(missing_NW, found_X)
        words_NWD[filled_NW] = self.mean_KD[torch.from_numpy(place_X)[found_X]]
        return filled_NW


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
            pooled_1WD, has_1W = pool_rows_to_words(
                torch.from_numpy(np.array(values[own], dtype=np.float32)),
                assign_tokens_to_words(spans_M2[own], words),
                lengths[place : place + 1],
                (1, len(words)),
            )
            for number in torch.nonzero(has_1W[0])[:, 0].tolist():
                form = form_of(text[slice(*words[number])].lower())
                total, count = sums.get(form, (torch.zeros(pooled_1WD.shape[2]), 0))
                sums[form] = (total + pooled_1WD[0, number], count + 1)
    forms = sorted(sums)
    means = [sums[form][0] / sums[form][1] for form in forms]
    return WordMeans(
        form_K=np.array(forms, dtype=np.int64), mean_KD=torch.stack(means) if means else torch.zeros(0, 1)
    )
