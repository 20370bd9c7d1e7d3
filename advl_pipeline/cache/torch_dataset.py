"""Caches as a torch `Dataset` and a collator, for your own training loop.

Shapes: B items of a batch, M tokens of the longest item, D feature width of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.quantise import as_tensor
from advl_pipeline.cache.reader import FeatureStore, TeacherCache, open_cache

TEACHERS = "teachers"


class CachedFeatures(Dataset[dict[str, Any]]):
    """Teacher features, one item per unit: a map-style dataset for `DataLoader`, accelerate or a `Trainer`.

    An item has the entries of its row, or `unit_id` without rows, and `teachers`. This maps each teacher's name to a
    dictionary of `global` (D,) and, if the cache has token features, `tokens` (M, D). Features have the stored dtype;
    int8 codes are returned as float16. Spawned workers open the caches themselves.
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
        for name in self._caches:
            self._store(name).token_lengths(
                self._ids
            )  # Each id is looked up once, so that a missing one is reported now.
        if rows is not None and len(rows) != len(self._ids):
            raise ConfigError(f"There are {len(rows)} rows for {len(self._ids)} units.")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several items with one look-up per cache; `DataLoader` calls this for a batch."""
        items = [
            {**({"unit_id": self._ids[index]} if self._rows is None else self._rows[index]), TEACHERS: {}}
            for index in indices
        ]
        ids = [self._ids[index] for index in indices]
        for name in self._caches:
            store = self._store(name)
            for item, values_D in zip(items, torch.from_numpy(store.global_features(ids)), strict=True):
                item[TEACHERS][name] = {"global": values_D}
            if self._tokens and store.has_tokens:
                values_MD, lengths_B = store.token_features(ids)
                # The tokens of a single unit are a view of a memory map, which torch must not write to.
                tokens = torch.split(as_tensor(values_MD), lengths_B.tolist())
                for item, tokens_MD in zip(items, tokens, strict=True):
                    item[TEACHERS][name]["tokens"] = tokens_MD
        return items

    def _store(self, name: str) -> FeatureStore:
        return self._caches[name].stores()[self._modality]


@dataclass(frozen=True)
class FeatureCollator:
    """Collator of items: `teachers` by name with `global` (B, D), zero-padded `tokens` (B, M, D) and `mask` (B, M).

    `rest` collates all other entries, a list of dictionaries, into a dictionary.
    """

    rest: Callable[[list[dict[str, Any]]], Mapping[str, Any]] = default_collate

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        teachers = {}
        for name, first in items[0][TEACHERS].items():
            teachers[name] = {"global": torch.stack([item[TEACHERS][name]["global"] for item in items])}
            if "tokens" in first:
                tokens = [item[TEACHERS][name]["tokens"] for item in items]
                lengths_B1 = torch.tensor([[len(values_MD)] for values_MD in tokens])
                padded_BMD = pad_sequence(tokens, batch_first=True)
                mask_BM = torch.arange(padded_BMD.shape[1]) < lengths_B1
                teachers[name] |= {"tokens": padded_BMD, "mask": mask_BM}
        rest = [{key: value for key, value in item.items() if key != TEACHERS} for item in items]
        return {**self.rest(rest), TEACHERS: teachers}
