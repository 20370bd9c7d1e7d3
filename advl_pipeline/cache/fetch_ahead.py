"""Fetching files of a remote cache before they are read: a few at once, in the order of need, into free room only."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from advl_pipeline.errors import AdvlError

_CONNECTIONS = 4
"""An object store gives one connection a part of what the line gives."""


class FetchAhead:
    """The files that one process will read soon, each fetched ahead once at most.

    Only arrays that are read at all are fetched: what is requested of others waits for their first reading. Once
    there is no free room, or a file could not be fetched, nothing more is: whoever reads that file meets the error,
    and until then it is none.

    Args:
        fetch: brings a file here; returns False where there is no free room for it.
    """

    def __init__(self, fetch: Callable[[str], bool]) -> None:
        self._fetch = fetch
        self._requested: set[str] = set()
        self._waiting: dict[str, list[str]] = {}
        self._wanted: deque[str] = deque()
        self._read_arrays: set[str] = set()
        self._is_over = False
        self._num_threads = 0
        self._lock = threading.Lock()

    def request(self, names: Iterable[str]) -> None:
        """Fetch files in this order."""
        with self._lock:
            for name in names:
                if name in self._requested:
                    continue
                self._requested.add(name)
                array = _array_of(name)
                if array in self._read_arrays:
                    self._wanted.append(name)
                else:
                    self._waiting.setdefault(array, []).append(name)
            self._start_threads()

    def reading(self, name: str) -> None:
        """Note that a file is about to be read."""
        with self._lock:
            array = _array_of(name)
            if array not in self._read_arrays:
                self._read_arrays.add(array)
                self._wanted.extend(self._waiting.pop(array, []))
                self._start_threads()

    def _start_threads(self) -> None:
        if self._is_over:
            return
        for _ in range(min(_CONNECTIONS - self._num_threads, len(self._wanted))):
            self._num_threads += 1
            # No daemons: one that is inside a library when the interpreter ends could crash it.
            threading.Thread(target=self._work, name="advl-fetch-ahead").start()

    def _work(self) -> None:
        while (name := self._next()) is not None:
            try:
                self._is_over = not self._fetch(name) or self._is_over
            except AdvlError:
                self._is_over = True

    def _next(self) -> str | None:
        with self._lock:
            if self._wanted and not self._is_over and threading.main_thread().is_alive():
                return self._wanted.popleft()
            self._num_threads -= 1
            return None


def _array_of(name: str) -> str:
    return name.partition("/c/")[0]
