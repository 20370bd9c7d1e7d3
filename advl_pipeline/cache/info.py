"""What a cache holds, finished or not, at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advl_pipeline.cache.checks import require_cache
from advl_pipeline.cache.commit_records import COMPLETE_RECORD, IDENTITY_FILE, committed_shards, load_complete
from advl_pipeline.cache.confidence import list_confidence
from advl_pipeline.cache.config import InfoConfig
from advl_pipeline.cache.provenance import PROVENANCE_FILE
from advl_pipeline.cache.store import read_json
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.locations import Location


@dataclass(frozen=True, kw_only=True)
class ModalityInfo:
    """Counts of one modality; `token_dim` is None where there are no token features."""

    num_units: int
    num_token_rows: int
    global_dim: int
    token_dim: int | None
    num_shards: int
    committed_shards: int
    quarantined: Mapping[str, str]
    clipped: int


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """Summary of a cache. `num_bytes` counts what is on disk or in the store."""

    path: Location
    is_complete: bool
    num_bytes: int
    stored_dtype: str
    shard_rows: int
    modalities: Mapping[str, ModalityInfo]
    confidences: tuple[Mapping[str, Any], ...]
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]


def run_info(config: InfoConfig) -> CacheInfo:
    """Summarise a cache.

    Raises:
        ConfigError: there is no cache.
        CorruptCache: its plan or its records are damaged.
        StorageError: the object store refuses access or cannot be reached.
    """
    store = open_store(config.cache)
    sizes = require_cache(store)
    writer = CacheWriter(store)
    complete = load_complete(store) if COMPLETE_RECORD in sizes else None
    committed = committed_shards(sizes)
    modalities = {}
    for name, shape in writer.plan.modalities.items():
        placement = writer.placement(name)
        modalities[name] = ModalityInfo(
            num_units=shape.num_units,
            num_token_rows=int(placement.lengths_N.sum()),
            global_dim=shape.global_dim,
            token_dim=shape.token_dim,
            num_shards=placement.num_shards,
            committed_shards=sum(modality == name for modality, _ in committed),
            quarantined=complete.quarantined.get(name, {}) if complete else {},
            clipped=complete.clipped.get(name, 0) if complete else 0,
        )
    return CacheInfo(
        path=config.cache,
        is_complete=complete is not None,
        num_bytes=sum(max(0, size) for size in sizes.values()),
        stored_dtype=writer.stored,
        shard_rows=writer.plan.shard_rows,
        modalities=modalities,
        confidences=tuple(list_confidence(config.cache)),
        identity=read_json(store, IDENTITY_FILE),
        provenance=read_json(store, PROVENANCE_FILE),
    )
