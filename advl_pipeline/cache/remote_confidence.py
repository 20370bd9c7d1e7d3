"""Confidence statistics of a cache in an object store: read and written through a folder that stands for it.

A set that is there, and sound, is never written again, whoever estimated it. A damaged one is replaced by the holder
of a lease, who takes its record away before anything else. So a reader whose objects do not fit the record that it
read finds another record, or none, unless they are damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache import confidence
from advl_pipeline.cache.leases import Leases
from advl_pipeline.cache.object_store import MissingObject, ObjectStore
from advl_pipeline.cache.records import confidence_record_path, files_from_json, unseal
from advl_pipeline.cache.remote_verify import fetch_object
from advl_pipeline.errors import CorruptCache, StorageError
from advl_pipeline.locations import Url


def read_remote_confidence(url: Url, identity: Mapping[str, Any]) -> confidence.ConfidenceSet | None:
    """As `confidence.read_confidence`."""
    store = ObjectStore(url)
    seen = b""
    while True:
        try:
            raw = store.get(confidence_record_path(confidence.confidence_key(identity)))
        except MissingObject:
            return None
        try:
            return _read_under(store, raw, identity)
        except CorruptCache:
            # Another process may have replaced or removed the set meanwhile: damage is what stands under one record
            # twice.
            if raw == seen:
                raise
            seen = raw


def write_remote_confidence(
    url: Url,
    identity: Mapping[str, Any],
    example_ids: Sequence[str],
    probability: npt.NDArray[np.float32],
    outranked: npt.NDArray[np.float32],
) -> None:
    """As `confidence.write_confidence`; the record is the last object that is written.

    Raises:
        StorageError: the store failed, or another process took the work over.
    """
    lease = f"confidence-{confidence.confidence_key(identity)}"
    leases = Leases(ObjectStore(url))
    try:
        with leases.claim(lease, wait=True):
            if not confidence.is_there(url, identity):
                _write(url, identity, example_ids, probability, outranked, leases, lease)
            leases.retire(lease)
    finally:
        leases.close()


def _read_under(store: ObjectStore, raw: bytes, identity: Mapping[str, Any]) -> confidence.ConfidenceSet | None:
    record = confidence_record_path(confidence.confidence_key(identity))
    with _standing_for(store.url) as root:
        (root / record).parent.mkdir()
        (root / record).write_bytes(raw)
        for name in files_from_json(unseal(root, record)["files"]):
            fetch_object(store, root, name)
        return confidence.read_confidence(root, identity)


def _write(
    url: Url,
    identity: Mapping[str, Any],
    example_ids: Sequence[str],
    probability: npt.NDArray[np.float32],
    outranked: npt.NDArray[np.float32],
    leases: Leases,
    lease: str,
) -> None:
    store = ObjectStore(url)
    record = confidence_record_path(confidence.confidence_key(identity))
    with _standing_for(url) as root:
        confidence.write_confidence(root, identity, example_ids, probability, outranked)
        store.delete(record)
        for name in [*files_from_json(unseal(root, record)["files"]), record]:
            if not store.settle(name, root / name, may_replace=lambda: leases.is_held(lease)):
                raise StorageError(
                    "Another process writes the same confidences at this moment.",
                    where=f"{url}/{name}",
                    next_command="give the same command again",
                )


@contextmanager
def _standing_for(url: Url) -> Iterator[Path]:
    with TemporaryDirectory(prefix="advl-confidence-") as folder:
        try:
            yield Path(folder)
        except CorruptCache as error:
            raise CorruptCache(
                error.what,
                where=error.where.replace(folder, url),
                why=error.why,
                next_command=f"advl cache verify {url}",
            ) from None
