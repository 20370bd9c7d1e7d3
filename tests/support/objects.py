"""Looking at caches from elsewhere: at objects in a store, which change behind the program's back; from a process
that imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from advl_pipeline.base.locations import Url
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.reader import TeacherCache


def objects(url: Url) -> dict[str, bytes]:
    """Return every object below a URL by relative name."""
    store = ObjectStore(url)
    return {name: store.get(name) for name in store.list()}


def upload(url: Url, content: Mapping[str, bytes]) -> None:
    """Make objects."""
    store = ObjectStore(url)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(store.create, content.keys(), content.values()))


def spoil(url: Url, name: str, content: bytes) -> None:
    """Put other content in an object's place."""
    store = ObjectStore(url)
    store.delete(name)
    assert store.create(name, content)


def flipped(content: bytes, place: float = 0.5) -> bytes:
    """Return bytes of which one bit is another; `place` is a share of their length."""
    position = int(place * (len(content) - 1))
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def sum_tokens(cache: TeacherCache, queue: Any) -> None:
    """Put the sum of all text token features into a queue, from whatever process this runs in."""
    queue.put(float(cache.text.token_features(cache.text.ids)[0].astype("f8").sum()))
