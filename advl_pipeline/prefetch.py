"""Threads that prepare items while the loop computes, in their order, and the time that the loop spent waiting.

Threads and not processes: tensors that cross a process boundary cost more than the overlap brings, and decoding,
tokenising and copying leave the interpreter to others.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's `mallopt`."""

Item = TypeVar("Item")
Plan = TypeVar("Plan")


def in_order(
    prepare: Callable[[Plan], Item], plans: Iterable[Plan], *, num_workers: int, name: str = "advl-worker"
) -> Iterator[Item]:
    """Yield what `prepare` makes of each plan, in the order of the plans.

    An error is raised where the item would have come. No more than `num_workers` items are made ahead.

    Args:
        prepare: called on `num_workers` threads; on the caller's where there is one worker.
        plans: iterated over in the caller's thread.
        num_workers: at least 1.
    """
    if num_workers == 1:
        yield from map(prepare, plans)
        return
    coming: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix=name) as pool:
        try:
            for future in _submit(pool, prepare, plans):
                coming.append(future)
                if len(coming) > num_workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _submit(pool: Executor, prepare: Callable[[Plan], Item], plans: Iterable[Plan]) -> Iterator[Future[Item]]:
    try:
        for plan in plans:
            yield pool.submit(prepare, plan)
    except Exception as error:
        # It is raised after the items before it, as it would be without threads.
        failed: Future[Item] = Future()
        failed.set_exception(error)
        yield failed


def keep_freed_memory() -> None:
    """Let the process use freed memory again instead of handing it back, where the C library is glibc.

    Every batch would be built in fresh pages otherwise, and clearing these takes a fifth of its processor time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # 32 MiB is the most that glibc takes; what is larger is mapped anew each time.
        for parameter, size in ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 1 << 26)):
            mallopt(parameter, size)


class Prefetcher(Generic[Item]):
    """Iterate over `make_items()` with some items prepared ahead.

    An error of the producer is raised where the item would have come. Leaving the context stops the thread.

    Args:
        make_items: called, and iterated over, in the thread.
        limit: of the weight of what is ready and not taken yet; one item may always be.
        weigh: an item's weight, such as its bytes.
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
        # Preparing makes many small objects: the collector would look through all that is loaded again and again.
        gc.freeze()
        keep_freed_memory()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._thread.join()
        gc.unfreeze()

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
