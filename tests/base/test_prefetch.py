"""What is prepared ahead comes in order and within its bound; errors come in their place, and nothing outlives it."""

from __future__ import annotations

import platform
import resource
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.prefetch import Prefetcher, in_order


@settings(deadline=None, max_examples=30)
@given(num_items=st.integers(0, 30), limit=st.integers(1, 8))
def test_items_come_in_order_within_the_limit(num_items: int, limit: int) -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for item in range(num_items):
            made.append(item)
            yield item

    with Prefetcher(make, limit=limit) as items:
        for taken, item in enumerate(items):
            assert item == taken
            # One more may be made and wait for room.
            assert len(made) - (taken + 1) <= limit + 1
    assert len(made) == num_items


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def make() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("gone")

    with Prefetcher(make) as items:
        iterator = iter(items)
        assert [next(iterator), next(iterator)] == [1, 2]
        with pytest.raises(OSError, match="gone"):
            next(iterator)


def test_leaving_stops_a_producer_that_waits_for_room() -> None:
    closed = threading.Event()

    def make() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with Prefetcher(make, limit=1, name="to be stopped") as items:
        assert next(iter(items)) == 0
    assert closed.wait(10)
    assert not any(thread.name == "to be stopped" for thread in threading.enumerate())


def test_waiting_is_counted() -> None:
    def make() -> Iterator[int]:
        time.sleep(0.2)
        yield 0

    with Prefetcher(make) as items:
        assert list(items) == [0]
    assert 0.1 < items.seconds_waited < 10


@settings(deadline=None, max_examples=30)
@given(
    num_plans=st.integers(0, 12),
    num_workers=st.integers(1, 4),
    bad_plan=st.integers(-1, 12),
    bad_item=st.integers(-1, 12),
)
def test_several_workers_give_what_one_does(num_plans: int, num_workers: int, bad_plan: int, bad_item: int) -> None:
    def plans() -> Iterator[int]:
        for number in range(num_plans):
            if number == bad_plan:
                raise OSError("no plan")
            yield number

    def prepare(plan: int) -> int:
        time.sleep(0.001 * (plan % 3))
        if plan == bad_item:
            raise ValueError("no item")
        return plan * plan

    def given_out(workers: int) -> tuple[list[int], str]:
        squares: list[int] = []
        try:
            squares.extend(in_order(prepare, plans(), num_workers=workers))
        except (OSError, ValueError) as error:
            return squares, str(error)
        return squares, ""

    assert given_out(num_workers) == given_out(1)


def test_several_workers_work_at_once_and_not_far_ahead() -> None:
    together = threading.Barrier(3)
    made: list[int] = []

    def prepare(plan: int) -> int:
        if plan < 3:
            together.wait(10)
        made.append(plan)
        return plan

    items = in_order(prepare, iter(range(100)), num_workers=3, name="to be stopped")
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()  # type: ignore[attr-defined]
    assert len(made) <= 3 + 3 + 1
    assert not any(thread.name.startswith("to be stopped") for thread in threading.enumerate())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep freed memory")
def test_items_are_built_in_memory_that_was_used_before() -> None:
    num_faults: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            # More than glibc would keep of its own accord.
            parts = [np.ones(1 << 19) for _ in range(32)]
            num_faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt)
            yield int(parts[number][0])

    with Prefetcher(items) as made:
        assert sum(made) == 20
    pages_of_an_item = 32 * (4 << 20) // resource.getpagesize()
    # Two items are held at a time: the first two pay for the pages, and all that follow use them.
    assert num_faults[-1] - num_faults[1] < pages_of_an_item // 10
