"""A teacher's features by unit: as its caches hold them, joined over several splits, or as a control changes them.

Shapes: Q units, M token rows, N texts, W words, K words by spelling, F words without rows, D teacher width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.reader import FeatureStore, TeacherCache
from advl_pipeline.datasets.words import assign_tokens_to_words, word_spans
from advl_pipeline.training.signals.averages import TeacherGrid, word_averages

Array = npt.NDArray[Any]
Lengths = npt.NDArray[np.int32]

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = get_args(Tower)

TEXTS_AT_ONCE = 1024


_KEPT = frozenset(
    "global_dim token_dim has_tokens global_mean global_variance token_mean token_variance "
    "global_features token_features char_spans begin_epoch announce".split()
)
"""What signals ask a store for. Nothing else of it is to be reached past a control."""


class FeatureView:
    """What takes the place of a cache's features; what it does not change of them is the cache's.

    Global features are (Q, D), token features (M, D) rows one unit after another with the (Q,) rows of each, and
    `char_spans` (M, 2) the characters that each row covers.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name not in _KEPT:
            raise AttributeError(name)
        return getattr(self._store, name)


UnitFeatures = FeatureStore | FeatureView
"""Features of units by id: a cache's, or what stands in for them."""


def form_of(word: str) -> int:
    """Return the number of a lower-cased word's spelling."""
    return zlib.crc32(word.encode())


@dataclass(frozen=True, kw_only=True)
class WordMeans:
    """The mean feature (K, D) of each word, by the number of its spelling (K,), ascending."""

    form_K: npt.NDArray[np.int64]
    mean_KD: torch.Tensor

    def look_up(self, form_NW: torch.Tensor, missing_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, W) bool, which of the missing words have a mean, and these, (F, D), in order."""
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
    """One teacher's features of one split, from a cache or what stands in for it.

    `image_places` says what its token features of a picture are of: the dataset's boxes, or a grid; None where there
    are none, or where nothing says where they lie. Of words it may have only those with the highest prior, or only
    those of candidates, without what stands before them. `word_means` are what words of a text without rows have.
    """

    name: str
    image: UnitFeatures | None
    text: UnitFeatures | None
    image_places: Literal["boxes"] | TeacherGrid | None
    aligned: bool
    word_means: WordMeans | None = None

    @property
    def sees_words(self) -> bool:
        """Whether the two towers share a space, so that each word's features can be compared with the picture's."""
        return (
            self.aligned
            and self.image is not None
            and self.text is not None
            and self.text.has_tokens
            and self.image.global_dim == self.text.token_dim
        )


def cached_teacher(cache: TeacherCache) -> TeacherFeatures:
    """View a cache as a teacher's features."""
    teacher = cache.identity["teacher"]
    places: Literal["boxes"] | TeacherGrid | None = None
    if teacher["image_tokens"] in ("boxes", "boxes-roi"):
        places = "boxes"
    elif teacher["image_tokens"] == "grid":
        places = TeacherGrid.of_description(teacher["image"])
    return TeacherFeatures(
        name=teacher["name"],
        image=cache.image,
        text=cache.text,
        image_places=places,
        aligned=teacher["aligned"],
    )


class JoinedFeatures(FeatureView):
    """Features of several stores: each unit's are those of the one that holds it. Moments are the first store's."""

    def __init__(self, stores: Sequence[FeatureStore], features: Sequence[UnitFeatures]) -> None:
        """Args:
        stores: what is asked whether it holds a unit.
        features: what then gives its features, one for each store: itself, or what stands in for it.
        """
        super().__init__(stores[0])
        self._stores = stores
        self._features = features

    def global_features(self, ids: Sequence[str]) -> Array:
        """Return (Q, D)."""
        return np.concatenate(
            self._gather(ids, lambda features, wanted: list(features.global_features(wanted)[:, None]))
        )

    def token_features(self, ids: Sequence[str]) -> tuple[Array, Lengths]:
        """Return (M, D) rows one unit after another, and the (Q,) rows of each."""
        units = self._gather(ids, lambda features, wanted: _split(*features.token_features(wanted)))
        return np.concatenate(units), np.array([len(rows) for rows in units], dtype=np.int32)

    def char_spans(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return (M, 2) the characters that each token row covers."""

        def spans(features: UnitFeatures, wanted: list[str]) -> list[Array]:
            return _split(features.char_spans(wanted), features.token_features(wanted)[1])

        return np.concatenate(self._gather(ids, spans))

    def begin_epoch(self) -> None:
        """Begin an epoch of every store."""
        for features in self._features:
            features.begin_epoch()

    def announce(self, ids: Sequence[str]) -> None:
        """Announce each unit to the store that holds it."""
        for features, places in zip(self._features, self._places(ids), strict=True):
            features.announce([ids[place] for place in places])

    def _gather(self, ids: Sequence[str], read: Callable[[UnitFeatures, list[str]], Sequence[Array]]) -> list[Array]:
        """Return what is read of each unit, in the order of the ids."""
        by_place: dict[int, Array] = {}
        for features, places in zip(self._features, self._places(ids), strict=True):
            if places:
                by_place.update(zip(places, read(features, [ids[place] for place in places]), strict=True))
        return [by_place[place] for place in range(len(ids))]

    def _places(self, ids: Sequence[str]) -> list[list[int]]:
        """Return, by store, the places of the ids that it gives; what none holds goes to the first, which says so."""
        holder = np.zeros(len(ids), dtype=np.int64)
        for number in range(len(self._stores) - 1, -1, -1):
            holder[self._stores[number].contains(ids)] = number
        return [np.flatnonzero(holder == number).tolist() for number in range(len(self._stores))]


def _split(rows: Array, lengths: Lengths) -> list[Array]:
    return np.split(rows, np.cumsum(lengths)[:-1])


def joined_teacher(cached: Sequence[TeacherFeatures], features: Sequence[TeacherFeatures]) -> TeacherFeatures:
    """Return one teacher over the splits of several caches.

    Args:
        cached: as the caches hold it, the split that is trained on first.
        features: as it is to be read: the same, or a control in its place.
    """
    first = features[0]
    if len(features) == 1:
        return first
    towers: dict[str, UnitFeatures | None] = {}
    for tower in TOWERS:
        stores = [store for teacher in cached if isinstance(store := getattr(teacher, tower), FeatureStore)]
        towers[tower] = JoinedFeatures(stores, [getattr(teacher, tower) for teacher in features]) if stores else None
    return replace(first, image=towers["image"], text=towers["text"])
