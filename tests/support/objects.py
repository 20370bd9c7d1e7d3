"""Caches accessed from outside: objects in a store, forged or corrupted files, reading in a process without torch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from advl_pipeline.base.locations import Url
from advl_pipeline.cache.commit_records import COMPLETE_RECORD, seal_record
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.store import entry_of


def objects(url: Url) -> dict[str, bytes]:
    """Return every object below a URL by relative name."""
    store = ObjectStore(url)
    return {name: store.get(name) for name in store.list()}


def upload(url: Url, content: Mapping[str, bytes]) -> None:
    """Upload objects below a URL."""
    store = ObjectStore(url)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(store.create, content.keys(), content.values()))


def spoil(url: Url, name: str, content: bytes) -> None:
    """Replace an object's content."""
    store = ObjectStore(url)
    store.delete(name)
    assert store.create(name, content)


def flipped(content: bytes, place: float = 0.5) -> bytes:
    """Return bytes with one bit flipped; `place` is a fraction of their length."""
    position = int(place * (len(content) - 1))
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def reseal(cache: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record of a cache, and update its seal and the complete record."""
    record = json.loads((cache / name).read_bytes())
    del record["record_sha256"]
    change(record)
    (cache / name).write_bytes(seal_record(record))
    if name != COMPLETE_RECORD:
        entry = entry_of((cache / name).read_bytes())
        reseal(cache, COMPLETE_RECORD, lambda complete: complete["files"].update({name: entry}))


def forge(cache: Path, content: Mapping[str, bytes]) -> None:
    """Replace the content of files of a cache, and update every record that lists them."""
    for name, raw in content.items():
        (cache / name).write_bytes(raw)
    entries = {name: entry_of(raw) for name, raw in content.items()}
    for path in sorted((cache / "records").glob("*.json")):
        listed = entries.keys() & json.loads(path.read_bytes()).get("files", {}).keys()
        if listed:
            changes = {name: entries[name] for name in listed}
            reseal(cache, f"records/{path.name}", lambda record, changes=changes: record["files"].update(changes))


def sum_tokens(cache: TeacherCache, queue: Any) -> None:
    """Put the sum of all text token features into a queue, from any process."""
    queue.put(float(cache.text.token_features(cache.text.ids)[0].astype("f8").sum()))


def wait_for_fetches() -> None:
    """Wait until no file is being prefetched."""
    for thread in threading.enumerate():
        if thread.name == "advl-fetch-ahead":
            thread.join(30)
