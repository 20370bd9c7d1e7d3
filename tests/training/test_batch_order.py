"""What an optimiser step takes is a function of the step alone; every example comes once per epoch, to one rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.training.batch_order import BatchOrder, ExampleOrder, TokenOrder, epoch_order

seeds, world_sizes = st.integers(0, 1000), st.integers(1, 5)
Make = Callable[[int, int], BatchOrder]


def taken(make: Make, step: int, world_size: int) -> list[list[int]]:
    """The examples of one step by rank, each rank asked anew, as after a resume."""
    by_rank = [make(rank, world_size).micro_batches(step) for rank in range(world_size)]
    return [[int(item) for micro in ranks for item in micro] for ranks in by_rank]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), seeds, world_sizes)
def test_batches_of_examples(size: int, batch_size: int, accumulate: int, seed: int, world_size: int) -> None:
    def make(rank: int, world: int, cut: int = accumulate) -> ExampleOrder:
        return ExampleOrder(size, batch_size=batch_size, accumulate=cut, seed=seed, rank=rank, world_size=world)

    num_steps = -(-2 * size // batch_size)
    steps = [taken(make, step, world_size) for step in range(num_steps)]
    assert all(sum(map(len, ranks)) == batch_size for ranks in steps)
    alone = [item for step in range(num_steps) for item in taken(make, step, 1)[0]]
    for epoch in range(2):
        assert sorted(alone[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert [sorted(item for share in ranks for item in share) for ranks in steps] == [
        sorted(taken(make, step, 1)[0]) for step in range(num_steps)
    ]
    order = make(0, 1)
    assert [int(item) for micro in order.micro_batches(num_steps - 1) for item in micro] == alone[-batch_size:]
    if batch_size >= world_size:
        # A micro-batch holds the same examples, whoever shares it, and all have a part of it.
        shared = [make(rank, world_size).micro_batches(3) for rank in range(world_size)]
        joined = [np.concatenate(parts).tolist() for parts in zip(*shared, strict=True)]
        assert joined == [part.tolist() for part in make(0, 1, len(joined)).micro_batches(3)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=40, max_size=80), st.integers(1, 4), seeds, st.integers(1, 3))
def test_batches_of_tokens(sizes: list[int], accumulate: int, seed: int, world_size: int) -> None:
    max_tokens = 24

    def make(rank: int, world: int) -> TokenOrder:
        return TokenOrder(sizes, max_tokens=max_tokens, accumulate=accumulate, seed=seed, rank=rank, world_size=world)

    ranks = [make(rank, world_size) for rank in range(world_size)]
    stream: list[list[int]] = []
    step = 0
    while sum(map(len, stream)) < 2 * len(sizes):
        micros = [order.micro_batches(step) for order in ranks]
        assert [[m.tolist() for m in share] for share in micros] == [
            [m.tolist() for m in make(rank, world_size).micro_batches(step)] for rank in range(world_size)
        ]
        # The ranks take turns.
        for turn in range(max(map(len, micros))):
            stream += [share[turn].tolist() for share in micros if turn < len(share)]
        step += 1
    assert all(len(batch) * max(sizes[item] for item in batch) <= max_tokens for batch in stream)
    for _ in range(2):
        epoch: list[int] = []
        while len(epoch) < len(sizes):
            epoch += stream.pop(0)
        assert sorted(epoch) == list(range(len(sizes)))


@given(seeds, st.integers(0, 50), st.integers(2, 5))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int, distance: int) -> None:
    order = epoch_order(200, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(200))
    for other in (epoch_order(200, seed=seed, epoch=epoch + distance), epoch_order(200, seed=seed + 1, epoch=epoch)):
        assert (order == other).mean() < 0.1
