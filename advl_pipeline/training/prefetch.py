"""One background thread that prepares batches while the loop computes, and the share of time spent waiting for it.

A thread and not worker processes: tensors that cross a process boundary cost more than the overlap brings.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")

_END = object()


class Prefetcher(Generic[Item]):
    """Iterate over `make_items()` with up to `depth` items prepared ahead.

    An error of the producer is raised where the item would have come. Leaving the context stops the thread.
    """

    def __init__(self, make_items: Callable[[], Iterator[Item]], *, depth: int = 4) -> None:
        self._queue: queue.Queue[object] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._make_items = make_items
        self._thread = threading.Thread(target=self._produce, name="advl-prefetch", daemon=True)
        self.seconds_waited = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():
            # The producer may be blocked on a full queue; emptying it lets it see the stop.
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def __iter__(self) -> Iterator[Item]:
        while True:
            before = time.perf_counter()
            item = self._queue.get()
            self.seconds_waited += time.perf_counter() - before
            if item is _END:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]

    def _produce(self) -> None:
        try:
            for item in self._make_items():
                if not self._offer(item):
                    return
        except BaseException as error:
            # Whatever stopped the producer belongs to the consumer's thread.
            self._offer(_Failure(error))
        else:
            self._offer(_END)

    def _offer(self, item: object) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
