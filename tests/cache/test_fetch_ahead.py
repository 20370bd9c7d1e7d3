"""Files are fetched ahead in the order of need, each once, only for arrays that are read, while all goes well."""

from __future__ import annotations

import threading
import time

from advl_pipeline.cache.disk_cache import FetchAhead
from advl_pipeline.errors import CorruptCache


class Fetcher:
    """Records what is fetched; `gate` holds every fetch up."""

    def __init__(self, *, room: int = 100) -> None:
        self.begun: list[str] = []
        self.fetched: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = self.most_running = 0
        self._room = room
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
            if len(self.fetched) == self._room:
                return False
            self.fetched.append(name)
            return True


def settled() -> None:
    for thread in threading.enumerate():
        if thread.name == "advl-fetch-ahead":
            thread.join(10)


def test_only_arrays_that_are_read_are_fetched() -> None:
    others = threading.enumerate()
    fetch = Fetcher()
    ahead = FetchAhead(fetch)
    ahead.request([f"values/c/{number}" for number in range(3)])
    ahead.request([f"spans/c/{number}" for number in range(3)])
    settled()
    assert fetch.fetched == []
    ahead.reading("values/c/0")
    settled()
    ahead.request(["values/c/1", "values/c/3", "spans/c/9"])
    settled()
    assert sorted(fetch.fetched) == [f"values/c/{number}" for number in range(4)]
    own = [item for item in threading.enumerate() if item.name == "advl-fetch-ahead" and item not in others]
    for thread in own:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in own)


def test_a_few_at_once_in_the_order_of_need() -> None:
    fetch = Fetcher()
    fetch.gate.clear()
    ahead = FetchAhead(fetch)
    ahead.reading("values/c/0")
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


def test_no_room_ends_it() -> None:
    fetch = Fetcher(room=5)
    ahead = FetchAhead(fetch)
    ahead.reading("values/c/0")
    ahead.request([f"values/c/{number}" for number in range(40)])
    settled()
    ahead.request(["values/c/99"])
    settled()
    assert len(fetch.fetched) == 5


def test_an_error_ends_it_and_is_left_to_whoever_reads() -> None:
    fetch = Fetcher()
    ahead = FetchAhead(fetch)
    ahead.reading("values/c/0")
    ahead.request(["values/c/bad"])
    settled()
    ahead.request(["values/c/1"])
    settled()
    ahead.reading("values/c/bad")
    assert fetch.fetched == []
