"""One background thread that prepares items while the loop computes, and the time that the loop spent waiting for it.

A thread and not worker processes: tensors that cross a process boundary cost more than the overlap brings.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Iterate over `make_items()` with some items prepared ahead.

    An error of the producer is raised where the item would have come. Leaving the context stops the thread.

    Args:
        make_items: called, and iterated over, in the thread.
        limit: of the weight of what is ready and not taken yet; one item may always be.
        weigh: an item's weight, such as its bytes.
        name: of the thread.
    """

    def __init__(
        self,
        make_items: Callable[[], Iterator[Item]],
        *,
        limit: int = 4,
        weigh: Callable[[Item], int] = lambda _: 1,
        name: str = "advl-prefetch",
    ) -> None:
        self._make_items = make_items
        self._limit = limit
        self._weigh = weigh
        self._ready: deque[tuple[Item, int]] = deque()
        self._held = 0
        self._is_over = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._produce, name=name, daemon=True)
        self.seconds_waited = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                before = time.perf_counter()
                self._changed.wait_for(lambda: self._ready or self._is_over)
                self.seconds_waited += time.perf_counter() - before
                if not self._ready:
                    break
                item, weight = self._ready.popleft()
                self._held -= weight
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def _produce(self) -> None:
        try:
            for item in self._make_items():
                if not self._offer(item, self._weigh(item)):
                    return
        except BaseException as error:
            # Whatever stopped the producer belongs to the consumer's thread.
            self._error = error
        self._end()

    def _offer(self, item: Item, weight: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or not self._held or self._held + weight <= self._limit)
            if not self._is_over:
                self._ready.append((item, weight))
                self._held += weight
                self._changed.notify_all()
            return not self._is_over

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
