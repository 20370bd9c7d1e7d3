"""Threads that prepare items in order while the loop computes, and the time that the loop spent waiting.

Threads rather than processes: moving tensors across a process boundary costs more than the overlap gains, and
decoding, tokenising and copying release the GIL.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's `mallopt`."""

_END = object()
"""Sentinel after the last item."""

Item = TypeVar("Item")
Plan = TypeVar("Plan")


def in_order(
    prepare: Callable[[Plan], Item], plans: Iterable[Plan], *, num_workers: int, name: str = "advl-worker"
) -> Iterator[Item]:
    """Yield the result of `prepare` for each plan, in plan order.

    An error is raised in place of its item. At most `num_workers` items are prepared ahead.

    Args:
        prepare: called on `num_workers` threads, or on the caller's thread for one worker.
        plans: iterated over in the caller's thread.
        num_workers: at least 1.
    """
    if num_workers == 1:
        yield from map(prepare, plans)
        return
    coming: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix=name) as pool:
        try:
            planned = iter(plans)
            while True:
                try:
                    coming.append(pool.submit(prepare, next(planned)))
                except StopIteration:
                    break
                except Exception as error:
                    # Raised after the preceding items, as it would be without threads.
                    coming.append(Future())
                    coming[-1].set_exception(error)
                    break
                if len(coming) > num_workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def keep_freed_memory() -> None:
    """Make the process reuse freed memory instead of returning it to the kernel, if the C library is glibc.

    Otherwise every batch would be built in fresh pages, and zeroing them takes a fifth of its processor time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # 32 MiB is the maximum that glibc accepts; larger blocks are mapped again each time.
        for parameter, size in ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 1 << 26)):
            mallopt(parameter, size)


class Prefetcher(Generic[Item]):
    """An iterator over `make_items()` with a thread that prepares some items ahead.

    An error of the producer is raised in place of its item. Leaving the context stops the thread.

    Args:
        make_items: called and iterated over in the thread.
        limit: maximum number of queued items; the thread prepares one more.
    """

    def __init__(
        self, make_items: Callable[[], Iterator[Item]], *, limit: int = 4, name: str = "advl-prefetch"
    ) -> None:
        self._make_items, self._limit = make_items, limit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._coming: deque[Future[Any]] = deque()
        self.seconds_waited = 0.0

    def __enter__(self) -> Self:
        # Preparing creates many small objects: the garbage collector would scan all loaded objects repeatedly.
        gc.freeze()
        keep_freed_memory()
        self._items = self._produce()
        for _ in range(self._limit + 1):
            self._ask()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._items.close()
        gc.unfreeze()

    def __iter__(self) -> Iterator[Item]:
        while True:
            before = time.perf_counter()
            item = self._coming.popleft().result()
            self.seconds_waited += time.perf_counter() - before
            if item is _END:
                return
            self._ask()
            yield item

    def _produce(self) -> Generator[Item]:
        yield from self._make_items()

    def _ask(self) -> None:
        self._coming.append(self._pool.submit(next, self._items, _END))
