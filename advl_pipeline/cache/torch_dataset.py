"""Caches as a torch `Dataset` and a collator, for your own training loop.

Shapes: B items of a batch, M tokens of the longest item, D feature width of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import FeatureStore, TeacherCache, open_cache

TEACHERS = "teachers"

Item = dict[str, Any]

OF_TOKENS = ("tokens", "spans")
"""Entries of a teacher with one row per token."""

_BATCHES_ANNOUNCED = 16


@dataclass(frozen=True, kw_only=True)
class ReadItems(Sequence[Item]):
    """Items that were read at once, padded; an item is made of views when it is asked for.

    `rows` are the items without teachers. `features` has, by teacher, `global` (B, D), `tokens` (B, M, D) and `spans`
    (B, M, 2). `lengths` has the number of tokens of each item by teacher, if it has tokens.
    """

    rows: Sequence[Item]
    features: Mapping[str, Mapping[str, torch.Tensor]]
    lengths: Mapping[str, Sequence[int]]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        teachers = {
            name: {
                kind: values[index, : self.lengths[name][index]] if kind in OF_TOKENS else values[index]
                for kind, values in features.items()
            }
            for name, features in self.features.items()
        }
        return {**self.rows[index], TEACHERS: teachers}

    @classmethod
    def joined(cls, items: Sequence[Mapping[str, Any]]) -> ReadItems:
        """Pad items that were read one by one."""
        features: dict[str, dict[str, torch.Tensor]] = {}
        lengths: dict[str, list[int]] = {}
        for name, first in items[0][TEACHERS].items():
            columns = {kind: [item[TEACHERS][name][kind] for item in items] for kind in first}
            features[name] = {
                kind: pad_sequence(values, batch_first=True) if kind in OF_TOKENS else torch.stack(values)
                for kind, values in columns.items()
            }
            if "tokens" in columns:
                lengths[name] = [len(tokens_MD) for tokens_MD in columns["tokens"]]
        rows = [{key: value for key, value in item.items() if key != TEACHERS} for item in items]
        return cls(rows=rows, features=features, lengths=lengths)


class CachedFeatures(Dataset[Item]):
    """Teacher features, one item per unit: a map-style dataset for `DataLoader`, accelerate or a `Trainer`.

    An item has the entries of its row, or `unit_id` without rows, and `teachers`. This maps each teacher's name to a
    dictionary of `global` (D,) and, if the cache has token features, `tokens` (M, D) and, of texts, `spans` (M, 2):
    the characters [start, end) of each token. Features have the stored dtype; int8 codes are returned as float16.
    Spawned workers open the caches themselves.
    """

    def __init__(
        self,
        caches: Sequence[TeacherCache | str | Path],
        modality: Literal["image", "text"],
        *,
        unit_ids: Sequence[str] | None = None,
        rows: Sequence[Mapping[str, Any]] | None = None,
        tokens: bool = True,
    ) -> None:
        """Args:
        caches: one per teacher.
        modality: the modality of the units.
        unit_ids: ids of the items, in order, as from `datasets.unit_ids`; None for all units of the first cache.
        rows: your own entries, one mapping per id, such as token ids and labels.
        tokens: whether to read token features, if there are any.

        Raises:
            ConfigError: no cache, two of one teacher, a cache without the modality, or a wrong number of rows.
            UnknownUnit: an id is missing from a cache.
        """
        opened = [cache if isinstance(cache, TeacherCache) else open_cache(cache) for cache in caches]
        self._caches = {cache.teacher_name: cache for cache in opened}
        self._modality = modality
        self._tokens = tokens
        if not opened or len(self._caches) < len(opened):
            raise ConfigError("A dataset needs caches, one of each teacher.", where=", ".join(map(str, caches)))
        for cache in opened:
            if modality not in cache.stores():
                raise ConfigError(f"The cache holds no {modality} features.", where=str(cache.path))
        self._ids = list(self._store(opened[0].teacher_name).ids if unit_ids is None else unit_ids)
        # Each id is looked up once, so that a missing one is reported now.
        for name in self._caches:
            self._store(name).token_lengths(self._ids)
        if rows is not None and len(rows) != len(self._ids):
            raise ConfigError(f"There are {len(rows)} rows for {len(self._ids)} units.")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> ReadItems:
        """Return several items, read with one look-up per cache; `DataLoader` calls this for a batch."""
        ids = [self._ids[index] for index in indices]
        features: dict[str, dict[str, torch.Tensor]] = {}
        lengths: dict[str, list[int]] = {}
        for name in self._caches:
            padded = self._store(name).padded_features(ids, tokens=self._tokens)
            features[name] = {"global": torch.from_numpy(padded.global_QD)}
            if padded.tokens_QMD is not None:
                features[name]["tokens"] = torch.from_numpy(padded.tokens_QMD)
                lengths[name] = padded.length_Q.tolist()
            if padded.spans_QM2 is not None:
                features[name]["spans"] = torch.from_numpy(padded.spans_QM2)
        if self._rows is None:
            return ReadItems(rows=[{"unit_id": unit} for unit in ids], features=features, lengths=lengths)
        return ReadItems(rows=[{**self._rows[index]} for index in indices], features=features, lengths=lengths)

    def batches(
        self, size: int, *, seed: int | None = None, collate: Callable[[ReadItems], Any] | None = None
    ) -> Iterator[Any]:
        """Yield the ready batches of an epoch; the disk reads later batches while the caller computes.

        Args:
            size: items of a batch; the last one may have fewer.
            seed: of the order, such as the number of the epoch; None for the order of the items.
            collate: makes a batch of items [default: `FeatureCollator()`].
        """
        order = range(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self)).tolist()
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        stores = [self._store(name) for name in self._caches]
        for store in stores:
            store.begin_epoch()
        for number, indices in enumerate(batches):
            if number % _BATCHES_ANNOUNCED == 0:
                coming = batches[number : number + 2 * _BATCHES_ANNOUNCED]
                ids = [self._ids[index] for batch in coming for index in batch]
                for store in stores:
                    store.announce(ids)
            yield (collate or FeatureCollator())(self.__getitems__(indices))

    def _store(self, name: str) -> FeatureStore:
        return self._caches[name].stores()[self._modality]


@dataclass(frozen=True)
class FeatureCollator:
    """Collator of items: `teachers` by name with `global` (B, D), zero-padded `tokens` (B, M, D) and `spans`
    (B, M, 2), and `mask` (B, M).

    `rest` collates all other entries, a list of dictionaries, into a dictionary.
    """

    rest: Callable[[list[Item]], Mapping[str, Any]] = default_collate

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Item:
        read = items if isinstance(items, ReadItems) else ReadItems.joined(items)
        teachers = {name: {**features} for name, features in read.features.items()}
        for name, lengths in read.lengths.items():
            teachers[name]["mask"] = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return {**self.rest([*read.rows]), TEACHERS: teachers}
