"""A teacher's features by unit, from the caches of several splits, or permuted by a control.

Shapes: Q units, M token rows, N texts, W words, K words by spelling, F words without rows, D teacher width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.quantise import as_tensor
from advl_pipeline.cache.reader import FeatureStore, TeacherCache
from advl_pipeline.datasets.words import assign_tokens_to_words, word_spans
from advl_pipeline.distillation.signal import Features
from advl_pipeline.training.signals.averages import TeacherGrid, word_averages

Array = npt.NDArray[Any]
Lengths = npt.NDArray[np.int32]

TEXTS_AT_ONCE = 1024


class UnitFeatures:
    """A teacher's features by unit id, each from whichever of several splits' caches has the unit.

    A control gives a unit the features of another one, or its own rows in another order. Dimensions and moments are
    those of the first cache, of the training split. Global features are (Q, D). Token features are (M, D) rows of one
    unit after another, with the (Q,) number of rows of each. `char_spans` (M, 2) are the characters of each row.
    """

    def __init__(
        self,
        *stores: FeatureStore,
        whole_of: Callable[[str], str] = str,
        rows_of: Callable[[str], str] = str,
        order_of: Callable[[str, int, int], npt.NDArray[np.int64]] | None = None,
    ) -> None:
        """Args:
        stores: of each cache.
        whole_of: maps a unit to the one whose global features it gets.
        rows_of: maps a unit to the one whose token rows it gets.
        order_of: maps a unit, its M rows and the number of rows there are to the rows to take, (M,).
        """
        self.stores = stores
        self._whole_of, self._rows_of, self._order_of = whole_of, rows_of, order_of
        first = stores[0]
        self.global_dim, self.token_dim, self.has_tokens = first.global_dim, first.token_dim, first.has_tokens

    def whole(self, ids: Sequence[str]) -> Features:
        """Return the global features of units, with the moments that standardise them."""
        first = self.stores[0]
        return _with_moments(self.global_features(ids), None, first.global_mean, first.global_variance)

    def tokens(self, ids: Sequence[str]) -> tuple[Features, Lengths]:
        """Return the token rows of units, with the moments that standardise them, and the number of rows of each."""
        first = self.stores[0]
        values, scales, lengths = self.stored_tokens(ids)
        return _with_moments(values, scales, first.token_mean, first.token_variance), lengths

    def global_features(self, ids: Sequence[str]) -> Array:
        """Return (Q, D)."""
        wanted = [self._whole_of(unit) for unit in ids]
        if len(self.stores) == 1:
            return self.stores[0].global_features(wanted)
        return np.concatenate(self._gather(wanted, lambda store, units: list(store.global_features(units)[:, None])))

    def stored_tokens(self, ids: Sequence[str]) -> tuple[Array, Array | None, Lengths]:
        """Return stored token features, with the scales of their rows if they are codes."""
        if len(self.stores) == 1 and self._order_of is None:
            return self.stores[0].stored_tokens(ids)
        values, lengths = self.token_features(ids)
        return values, None, lengths

    def token_features(self, ids: Sequence[str]) -> tuple[Array, Lengths]:
        """Return token features, with the number of rows that each unit has."""
        wanted = [self._rows_of(unit) for unit in ids]
        if len(self.stores) == 1:
            rows, lent = self.stores[0].token_features(wanted)
        else:
            each = self._gather(wanted, lambda store, units: _split(*store.token_features(units)))
            rows, lent = np.concatenate(each), np.array([len(rows) for rows in each], dtype=np.int32)
        if self._order_of is None:
            return rows, lent
        lengths = np.concatenate(self._gather(ids, lambda store, units: list(store.token_lengths(units)[:, None])))
        starts = np.concatenate([[0], np.cumsum(lent)[:-1]])
        of_units = zip(ids, starts, lengths.tolist(), lent.tolist(), strict=True)
        take = [start + self._order_of(unit, num_rows, others) for unit, start, num_rows, others in of_units]
        return rows[np.concatenate(take).astype(np.int64)], lengths

    def char_spans(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return (M, 2) the characters that each token row covers."""
        if len(self.stores) == 1:
            return self.stores[0].char_spans(ids)
        return np.concatenate(
            self._gather(ids, lambda store, units: _split(store.char_spans(units), store.token_lengths(units)))
        )

    def begin_epoch(self) -> None:
        """Begin an epoch of every store."""
        for store in self.stores:
            store.begin_epoch()

    def announce(self, ids: Sequence[str]) -> None:
        """Announce each unit whose features are read to the store that has it."""
        wanted = [self._whole_of(unit) for unit in ids]
        for store, places in zip(self.stores, self._places(wanted), strict=True):
            store.announce([wanted[place] for place in places])

    def _gather(self, ids: Sequence[str], read: Callable[[FeatureStore, list[str]], Sequence[Array]]) -> list[Array]:
        """Return the values that are read for each unit, in the order of the ids."""
        by_place: dict[int, Array] = {}
        for store, places in zip(self.stores, self._places(ids), strict=True):
            if places:
                by_place.update(zip(places, read(store, [ids[place] for place in places]), strict=True))
        return [by_place[place] for place in range(len(ids))]

    def _places(self, ids: Sequence[str]) -> list[list[int]]:
        """Return, by store, the positions of its units; a unit in no store goes to the first, which reports it."""
        holder = np.zeros(len(ids), dtype=np.int64)
        for number in reversed(range(len(self.stores) if len(self.stores) > 1 else 0)):
            holder[self.stores[number].contains(ids)] = number
        return [np.flatnonzero(holder == number).tolist() for number in range(len(self.stores))]


def _with_moments(
    values_MD: Array,
    scale_M: Array | None,
    mean_D: npt.NDArray[np.float32],
    variance_D: npt.NDArray[np.float32],
) -> Features:
    return Features(
        values_MD=as_tensor(values_MD),
        scale_M=None if scale_M is None else as_tensor(scale_M),
        mean_D=torch.from_numpy(np.array(mean_D)),
        variance_D=torch.from_numpy(np.array(variance_D)),
    )


def _split(rows: Array, lengths: Lengths) -> list[Array]:
    return np.split(rows, np.cumsum(lengths)[:-1])


def form_of(word: str) -> int:
    """Return an integer for a lower-cased word's spelling."""
    return zlib.crc32(word.encode())


@dataclass(frozen=True, kw_only=True)
class WordMeans:
    """The mean feature (K, D) of each word, by the integer of its spelling (K,), ascending."""

    form_K: npt.NDArray[np.int64]
    mean_KD: torch.Tensor

    def look_up(self, form_NW: torch.Tensor, missing_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, W) bool, which of the missing words have a mean, and these means, (F, D), in order."""
        if not len(self.form_K):
            return torch.zeros_like(missing_NW), self.mean_KD
        asked_X = form_NW[missing_NW].numpy()
        place_X = np.searchsorted(self.form_K, asked_X).clip(max=len(self.form_K) - 1)
        found_X = torch.from_numpy(self.form_K[place_X] == asked_X)
        filled_NW = torch.zeros_like(missing_NW).masked_scatter(missing_NW, found_X)
        return filled_NW, self.mean_KD[torch.from_numpy(place_X)[found_X]]


def word_means(rows: UnitFeatures, texts: Mapping[str, str]) -> WordMeans:
    """Return the means of a teacher's features by word, over the texts (unit id -> text) that have rows."""
    sums: dict[int, tuple[torch.Tensor, int]] = {}
    ids = list(texts)
    for first in range(0, len(ids), TEXTS_AT_ONCE):
        part = ids[first : first + TEXTS_AT_ONCE]
        values, lengths = rows.token_features(part)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        spans_M2 = rows.char_spans(part)
        for place in np.flatnonzero(lengths).tolist():
            text, taken = texts[part[place]], slice(int(starts[place]), int(starts[place + 1]))
            words = word_spans(text)
            word_M = assign_tokens_to_words(spans_M2[taken], words)
            averages, has_1W = word_averages(word_M, lengths[place : place + 1], (1, len(words)))
            pooled_1WD = averages.apply(torch.from_numpy(np.array(values[taken], dtype=np.float32)))
            for number in torch.nonzero(has_1W[0])[:, 0].tolist():
                form = form_of(text[slice(*words[number])].lower())
                total, count = sums.get(form, (torch.zeros(pooled_1WD.shape[2]), 0))
                sums[form] = (total + pooled_1WD[0, number], count + 1)
    forms = sorted(sums)
    means = [sums[form][0] / sums[form][1] for form in forms]
    return WordMeans(form_K=np.array(forms, np.int64), mean_KD=torch.stack(means) if means else torch.zeros(0, 1))


@dataclass(frozen=True, kw_only=True)
class TeacherFeatures:
    """One teacher's features of every unit that a run reads.

    `image_places` are the places of its picture token features: the dataset's boxes, or a grid; None if there are no
    such features or their places are unknown. Of words it may store only those with the highest prior, or only those
    of candidates without the preceding text. With `keeps_some_texts` only some texts have rows of words, and
    `word_means` serve the words of the others.
    """

    name: str
    image: UnitFeatures | None
    text: UnitFeatures | None
    image_places: Literal["boxes"] | TeacherGrid | None
    aligned: bool
    keeps_some_texts: bool = False
    word_means: WordMeans | None = None

    def serving(self, texts: Mapping[str, str]) -> TeacherFeatures:
        """Return it with the means of words for those of the texts (unit id -> text) that have no rows."""
        if not self.keeps_some_texts or self.text is None:
            return self
        return replace(self, word_means=word_means(self.text, texts))

    @property
    def sees_words(self) -> bool:
        """Whether the two towers share a space, so that words can be compared with the picture."""
        return (
            self.aligned
            and self.image is not None
            and self.text is not None
            and self.text.has_tokens
            and self.image.global_dim == self.text.token_dim
        )


def cached_teacher(*caches: TeacherCache) -> TeacherFeatures:
    """View the caches of a teacher, one per split, as its features; the training split comes first."""
    teacher = caches[0].identity["teacher"]
    places: Literal["boxes"] | TeacherGrid | None = None
    if teacher["image_tokens"] in ("boxes", "boxes-roi"):
        places = "boxes"
    elif teacher["image_tokens"] == "grid":
        places = TeacherGrid.of_description(teacher["image"])
    image, text = (
        UnitFeatures(*stores) if stores else None
        for stores in (
            [cache.image for cache in caches if cache.image is not None],
            [cache.text for cache in caches if cache.text is not None],
        )
    )
    return TeacherFeatures(
        name=teacher["name"],
        image=image,
        text=text,
        image_places=places,
        aligned=teacher["aligned"],
        keeps_some_texts=any(cache.keeps_some_texts for cache in caches),
    )
