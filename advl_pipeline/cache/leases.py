"""Leases: claims on a cache in an object store, where there are no kernel locks.

A lease is an object that its holder writes anew every few seconds. Whoever finds one that has not changed for
`LEASE_SECONDS` of its own clock takes it over; clocks of different machines are never compared. Each step is a write
on the condition of what was seen, so two processes never both succeed. A holder that was suspended for longer than a
lease finds out at its next conditional write; what it may still write is conditional too (`bucket_store`).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from advl_pipeline.cache.files import WORK_FOLDER
from advl_pipeline.cache.object_store import ObjectStore, Version
from advl_pipeline.cache.store import MissingFile
from advl_pipeline.errors import StorageError

LEASE_SECONDS = 20.0
"""How long a lease must stand still before it is taken over: what a killed process delays its shards by."""

_BEATS_PER_LEASE = 5
_SECONDS_BETWEEN_LOOKS = 0.5
_FREE = "free"


class Leases:
    """The leases of one process on one cache. A thread keeps those that are held alive."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lease_seconds = LEASE_SECONDS
        self._owner = secrets.token_hex(8)
        self._beat = 0
        self._held: dict[str, Version] = {}
        self._seen: dict[str, tuple[Version, float]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Try to claim a piece of work; yields whether it is ours until the block ends.

        Args:
            name: what is claimed, such as "text-00003".
            wait: wait for another holder to finish or die instead of yielding False.
        """
        while not (ours := self._acquire(name)) and wait:
            time.sleep(min(_SECONDS_BETWEEN_LOOKS, self._lease_seconds / _BEATS_PER_LEASE))
        try:
            yield ours
        finally:
            if ours:
                self._release(name)

    def is_held(self, name: str) -> bool:
        """Whether a lease is still ours, asked of the store."""
        with self._lock:
            return name in self._held and self._renew(name)

    def retire(self, name: str) -> None:
        """Remove a lease that is held, for work that is done for good: whoever waits for it finds that."""
        with self._lock:
            if name in self._held and self._renew(name):
                del self._held[name]
                self._store.delete(_object(name))

    def close(self) -> None:
        """Stop keeping leases alive."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _acquire(self, name: str) -> bool:
        version = self._store.create(_object(name), self._content())
        if version is None:
            version = self._take_over(name)
        if version is None:
            return False
        with self._lock:
            self._seen.pop(name, None)
            self._held[name] = version
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_alive, name="advl-lease", daemon=True)
            self._thread.start()
        return True

    def _take_over(self, name: str) -> Version | None:
        try:
            raw, version = self._store.get_versioned(_object(name))
        except MissingFile:
            return None  # Freed this moment; it is there for the taking at the next look.
        owner = _owner_of(raw)
        now = time.monotonic()
        seen = self._seen.get(name)
        if seen is None or seen[0] != version:
            self._seen[name] = seen = (version, now)
        if owner not in (_FREE, self._owner) and now - seen[1] < self._lease_seconds:
            return None
        return self._store.replace(_object(name), self._content(), version)

    def _release(self, name: str) -> None:
        with self._lock:
            version = self._held.pop(name, None)
            if version is None:
                return
            # Not removed, for another may have taken it over by now; the condition finds that out. A store that
            # cannot be reached any more lets the lease run out.
            with suppress(StorageError):
                self._store.replace(_object(name), _render(_FREE, 0), version)

    def _renew(self, name: str) -> bool:
        version = self._store.replace(_object(name), self._content(), self._held[name])
        if version is None:
            del self._held[name]
            return False
        self._held[name] = version
        return True

    def _keep_alive(self) -> None:
        while not self._stopped.wait(self._lease_seconds / _BEATS_PER_LEASE):
            with self._lock:
                names = list(self._held)
            for name in names:
                with self._lock:
                    if name not in self._held:
                        continue
                    try:
                        self._renew(name)
                    except StorageError:
                        # The store may come back before the lease ends; what is written under it fails by itself.
                        continue

    def _content(self) -> bytes:
        self._beat += 1
        return _render(self._owner, self._beat)


def _object(name: str) -> str:
    return f"{WORK_FOLDER}/claims/{name}"


def _render(owner: str, beat: int) -> bytes:
    return json.dumps({"beat": beat, "owner": owner}).encode()


def _owner_of(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["owner"])
    except (ValueError, KeyError, TypeError):
        return ""
