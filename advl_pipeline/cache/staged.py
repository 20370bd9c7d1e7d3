"""What committed shards add to the per-unit tables; it waits in the work folder for the cache to be whole.

One file per shard, safetensors behind the digest of all of it, so that what was lost or changed meanwhile never gets
into a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from advl_pipeline.cache.files import WORK_FOLDER
from advl_pipeline.cache.records import shard_name
from advl_pipeline.cache.store import Readable, Store
from advl_pipeline.errors import CorruptCache

STAGED_FOLDER = f"{WORK_FOLDER}/staged"

Array = npt.NDArray[Any]
_DIGEST_BYTES = 32


def staged_path(modality: str, shard: int) -> str:
    """Return the name of the file that holds what a shard adds."""
    return f"{STAGED_FOLDER}/{shard_name(modality, shard)}.safetensors"


def stage(store: Store, modality: str, shard: int, content: Mapping[str, Array]) -> None:
    """Keep what a shard adds; raises `StorageError`."""
    body = save({name: np.ascontiguousarray(values) for name, values in content.items()})
    store.put(staged_path(modality, shard), [hashlib.sha256(body).digest(), body])


def load_staged(store: Readable, modality: str, shard: int) -> dict[str, Array]:
    """Return what a shard adds.

    Raises:
        CorruptCache: it is missing, or not as it was written.
    """
    name = staged_path(modality, shard)
    try:
        with store.opened(name) as descriptor, open(descriptor, "rb", closefd=False) as file:
            raw = file.read()
        if hashlib.sha256(raw[_DIGEST_BYTES:]).digest() == raw[:_DIGEST_BYTES]:
            content: dict[str, Array] = load(raw[_DIGEST_BYTES:])
            return content
        why = "its content changed"
    except (CorruptCache, SafetensorError) as error:
        why = str(error).splitlines()[0]
    raise CorruptCache(
        "Work in progress of the cache is missing or damaged.",
        where=store.where(name),
        why=why,
        next_command=store.repair_command,
    )
