"""Writing arrays: metadata and whole shard files, each flushed and shown by rename, sound ones left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.files import Buffer, FileEntry
from advl_pipeline.cache.layout import DTYPES, ArraySpec
from advl_pipeline.cache.store import Store

Array = npt.NDArray[Any]


def publish_array(store: Store, spec: ArraySpec, rows: Array) -> dict[str, FileEntry]:
    """Write an array's metadata and shards, leaving files alone that already hold the same; returns their entries."""
    files = {spec.metadata_path: store.put(spec.metadata_path, [spec.metadata()])}
    for shard in range(spec.num_shards):
        first = shard * spec.shard_rows
        files[spec.shard_path(shard)] = publish_shard(store, spec, shard, rows[first : first + spec.shard_rows])
    return files


def publish_shard(store: Store, spec: ArraySpec, shard: int, rows: Array) -> FileEntry:
    """Write one shard file."""
    return store.put(spec.shard_path(shard), shard_content(spec, shard, rows))


def shard_content(spec: ArraySpec, shard: int, rows: Array) -> list[Buffer]:
    """Return what a shard file consists of: its rows, zeros up to a whole inner chunk, the index."""
    payload = np.ascontiguousarray(rows, DTYPES[spec.dtype])
    slack = spec.payload_bytes(shard) - payload.nbytes
    if slack < 0 or payload.shape[1:] != spec.shape[1:]:
        raise ValueError(f"{spec.path}: {payload.shape} is not shard {shard} of {spec}")
    return [payload.reshape(-1).view(np.uint8).data, bytes(slack), spec.footer(shard)]
