"""Memory of batches is used again only when nobody can see it any more."""

from __future__ import annotations

import gc

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.cache.stream import BufferPool

FLOAT16 = np.dtype(np.float16)


def address(rows: np.ndarray) -> int:
    return int(rows.__array_interface__["data"][0])


def test_what_is_let_go_is_used_again() -> None:
    pool = BufferPool()
    first = pool.allocate((4, 3), FLOAT16)
    place = address(first)
    second = pool.allocate((4, 3), FLOAT16)
    assert address(second) != place
    del first
    assert address(pool.allocate((3, 4), FLOAT16)) == place


def test_anything_that_looks_at_it_holds_it() -> None:
    pool = BufferPool()
    rows = pool.allocate((4, 3), FLOAT16)
    place = address(rows)
    tensor = torch.from_numpy(rows)
    part = tensor[1:, :2].T
    del rows, tensor
    gc.collect(2)
    assert address(pool.allocate((4, 3), FLOAT16)) != place
    del part
    assert place in {address(held) for held in [pool.allocate((4, 3), FLOAT16) for _ in range(1)]}


@given(st.lists(st.tuples(st.integers(0, 2_000_000), st.booleans()), max_size=12))
def test_arrays_that_are_held_never_overlap(requests: list[tuple[int, bool]]) -> None:
    pool = BufferPool()
    held: list[np.ndarray] = []
    for number, (size, keep) in enumerate(requests):
        rows = pool.allocate((size,), np.dtype(np.uint8))
        rows[:] = number
        if keep:
            held.append(rows)
            rows.fill(len(held))
    assert all((rows == number).all() for number, rows in enumerate(held, start=1))
