"""Files are fetched ahead in the order of need, each once, while all goes well; `test_remote.py` has the rest."""

from __future__ import annotations

import threading
import time

import pytest

from advl_pipeline.base.errors import CorruptCache
from advl_pipeline.cache.disk_cache import FetchAhead


class Fetcher:
    """Records what is fetched; `gate` holds every fetch up."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.fetched: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = self.most_running = 0
        self._lock = threading.Lock()

    def __call__(self, name: str) -> bool:
        with self._lock:
            self.begun.append(name)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self.gate.wait(10)
        with self._lock:
            self.running -= 1
            if name.endswith("bad"):
                raise CorruptCache("It is bad.", where=name)
            self.fetched.append(name)
            return True


def settled() -> None:
    for thread in threading.enumerate():
        if thread.name == "advl-fetch-ahead":
            thread.join(10)


def test_a_few_at_once_in_the_order_of_need() -> None:
    fetch = Fetcher()
    fetch.gate.clear()
    ahead = FetchAhead(fetch)
    names = [f"values/c/{number}" for number in range(40)]
    ahead.request(names)
    deadline = time.monotonic() + 5
    while fetch.running < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(fetch.begun) == names[:4]
    fetch.gate.set()
    settled()
    assert sorted(fetch.fetched) == sorted(names)
    assert fetch.most_running == 4


def test_an_error_ends_it_and_is_left_to_whoever_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = Fetcher()
    ahead = FetchAhead(fetch)
    ahead.request(["values/c/bad"])
    settled()
    monkeypatch.setattr(threading, "Thread", None)  # None is started for what will not be fetched.
    ahead.request(["values/c/1"])
    assert fetch.fetched == []
