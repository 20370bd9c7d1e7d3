"""Looking at, and changing, the objects of a cache in an object store behind the program's back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from advl_pipeline.cache.confidence import write_confidence
from advl_pipeline.cache.stores import ObjectStore
from advl_pipeline.locations import Url


def objects(url: Url) -> dict[str, bytes]:
    """Return every object below a URL by relative name."""
    store = ObjectStore(url)
    return {name: store.get(name) for name in store.list()}


def upload(url: Url, content: Mapping[str, bytes]) -> None:
    """Make objects."""
    for name, raw in content.items():
        spoil(url, name, raw)


def write_set(
    url: str, identity: Mapping[str, Any], names: Sequence[str], probability: Any, environment: Mapping[str, str]
) -> None:
    """Write a set of confidences, in a process of its own that finds the store by `environment`."""
    os.environ.update(environment)
    write_confidence(Url(url), identity, names, probability, probability)


def spoil(url: Url, name: str, content: bytes) -> None:
    """Put other content in an object's place."""
    store = ObjectStore(url)
    store.delete(name)
    assert store.create(name, content)
