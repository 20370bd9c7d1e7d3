"""Confidence statistics of a cache in an object store: read and written through a folder that stands for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache import confidence
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.records import confidence_record_path, files_from_json, unseal
from advl_pipeline.cache.remote_verify import fetch_object
from advl_pipeline.errors import CorruptCache, StorageError
from advl_pipeline.locations import Url


def read_remote_confidence(url: Url, identity: Mapping[str, Any]) -> tuple[list[str], npt.NDArray[np.float32]] | None:
    """As `confidence.read_confidence`."""
    store = ObjectStore(url)
    record = confidence_record_path(confidence.confidence_key(identity))
    with _standing_for(url) as root:
        try:
            fetch_object(store, root, record)
        except CorruptCache:
            return None
        for name in files_from_json(unseal(root, record)["files"]):
            fetch_object(store, root, name)
        return confidence.read_confidence(root, identity)


def write_remote_confidence(
    url: Url, identity: Mapping[str, Any], example_ids: Sequence[str], probability: npt.NDArray[np.float32]
) -> None:
    """As `confidence.write_confidence`; the record is the last object that is written."""
    store = ObjectStore(url)
    record = confidence_record_path(confidence.confidence_key(identity))
    with _standing_for(url) as root:
        confidence.write_confidence(root, identity, example_ids, probability)
        for name in [*files_from_json(unseal(root, record)["files"]), record]:
            if not store.settle(name, root / name):
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
