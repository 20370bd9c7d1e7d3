"""One teacher over several splits: each unit is looked up in the cache that holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.reader import FeatureStore
from advl_pipeline.training.signals import Array, StandIn, TeacherFeatures, UnitFeatures


class JoinedFeatures(StandIn):
    """Features of several stores by id. Widths and moments are those of the first store."""

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

    def token_features(self, ids: Sequence[str]) -> tuple[Array, npt.NDArray[np.int32]]:
        """Return (M, D) rows one unit after another, and the (Q,) rows of each."""
        units = self._gather(ids, lambda features, wanted: _split(*features.token_features(wanted)))
        return np.concatenate(units), np.array([len(rows) for rows in units], dtype=np.int32)

    def char_spans(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return (M, 2) the characters that each token row covers."""
        return np.concatenate(
            self._gather(
                ids,
                lambda features, wanted: _split(features.char_spans(wanted), features.token_features(wanted)[1]),
            )
        )

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
        found: dict[int, Array] = {}
        for features, places in zip(self._features, self._places(ids), strict=True):
            if places:
                found.update(zip(places, read(features, [ids[place] for place in places]), strict=True))
        return [found[place] for place in range(len(ids))]

    def _places(self, ids: Sequence[str]) -> list[list[int]]:
        """Return, by store, the places of the ids that it gives; what none holds goes to the first, which says so."""
        holder = np.zeros(len(ids), dtype=np.int64)
        for number in range(len(self._stores) - 1, -1, -1):
            holder[self._stores[number].contains(ids)] = number
        return [np.flatnonzero(holder == number).tolist() for number in range(len(self._stores))]


def _split(rows: Array, lengths: npt.NDArray[np.int32]) -> list[Array]:
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
    for tower in ("image", "text"):
        stores = [store for teacher in cached if isinstance(store := getattr(teacher, tower), FeatureStore)]
        towers[tower] = JoinedFeatures(stores, [getattr(teacher, tower) for teacher in features]) if stores else None
    return replace(first, image=towers["image"], text=towers["text"])
