"""The streaming order: every item once per epoch, the same whoever asks, and resumed to the same sequence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.cache.order import OrderState, epoch_order, rank_slice
from advl_pipeline.cache.reader import FeatureStore, open_cache
from advl_pipeline.errors import ConfigError, IdentityMismatch

sizes, seeds, epochs = st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 1000)
world_sizes, batch_sizes = st.integers(1, 7), st.integers(1, 9)


@pytest.fixture(scope="module")
def store(pristine: Path) -> FeatureStore:
    found = open_cache(pristine / "cache").text
    assert found is not None
    return found


def in_step(ranks: list[list[np.ndarray]]) -> Iterator[int]:
    """What the ranks read together, global batch by global batch."""
    for shares in zip(*ranks, strict=True):
        yield from (int(item) for share in shares for item in share)


@given(sizes, seeds, epochs, world_sizes, batch_sizes)
def test_every_item_once_per_epoch(size: int, seed: int, epoch: int, world_size: int, batch_size: int) -> None:
    order = epoch_order(size, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(order, epoch_order(size, seed=seed, epoch=epoch))
    assert sorted(order.tolist()) == list(range(size))
    ranks = [rank_slice(order, rank=r, world_size=world_size, batch_size=batch_size) for r in range(world_size)]
    assert all(len(share) <= batch_size for batches in ranks for share in batches)
    # Together, and in step, the ranks follow the order itself: disjoint, complete, and the same for every world.
    assert list(in_step(ranks)) == order.tolist()


@given(sizes, seeds, epochs, st.data())
def test_resumed_under_another_world_the_sequence_goes_on(
    size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    order = epoch_order(size, seed=seed, epoch=epoch)
    consumed = 0
    seen: list[int] = []
    while consumed < size:
        world_size, batch_size = data.draw(world_sizes), data.draw(batch_sizes)
        steps = data.draw(st.integers(1, 20))
        ranks = [
            rank_slice(order[consumed:], rank=r, world_size=world_size, batch_size=batch_size)[:steps]
            for r in range(world_size)
        ]
        seen += in_step(ranks)
        consumed = min(size, consumed + steps * world_size * batch_size)
        state = OrderState(epoch=epoch, consumed=consumed)
        assert OrderState.from_dict(json.loads(json.dumps(state.to_dict(source="x"))), source="x") == state
    assert seen == order.tolist()


@settings(max_examples=40)
@given(seeds, epochs, st.integers(0, 40), st.data())
def test_streams_stop_and_go_on_anywhere(
    store: FeatureStore, seed: int, epoch: int, batches_before: int, data: st.DataObject
) -> None:
    expected = [store.ids[place] for place in epoch_order(len(store), seed=seed, epoch=epoch)]
    stream = store.batches(data.draw(batch_sizes), seed=seed, epoch=epoch, tokens=False, bytes_in_flight=0)
    seen: list[str] = []
    for _, batch in zip(range(batches_before), stream, strict=False):
        seen += batch.ids
    state = stream.state_dict()
    world_size, batch_size = data.draw(world_sizes), data.draw(batch_sizes)
    # Whatever the worlds before, the new one's ranks share the rest.
    resumed = [
        store.batches(batch_size, seed=seed, rank=r, world_size=world_size, tokens=False, bytes_in_flight=0)
        for r in range(world_size)
    ]
    for one in resumed:
        one.load_state_dict(state)
    for shares in zip(*resumed, strict=True):
        seen += [unit for share in shares for unit in share.ids]
    assert seen == expected
    assert [one.state_dict() for one in resumed] == [state | {"consumed": len(store)}] * world_size


@given(seeds, epochs, st.integers(2, 5))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int, distance: int) -> None:
    order = epoch_order(200, seed=seed, epoch=epoch)
    for other in (epoch_order(200, seed=seed, epoch=epoch + distance), epoch_order(200, seed=seed + 1, epoch=epoch)):
        assert (order == other).mean() < 0.1


def test_orders_mix_globally() -> None:
    order = epoch_order(10_000, seed=0, epoch=0)
    # The mean distance between where an item lies and where it is read is a third of the data for a full shuffle.
    assert np.abs(order - np.arange(10_000)).mean() == pytest.approx(10_000 / 3, rel=0.03)


@pytest.mark.parametrize(("rank", "world_size", "batch_size"), [(-1, 1, 4), (2, 2, 4), (0, 0, 4), (0, 1, 0)])
def test_impossible_shares_are_refused(rank: int, world_size: int, batch_size: int) -> None:
    with pytest.raises(ConfigError):
        rank_slice(np.arange(5), rank=rank, world_size=world_size, batch_size=batch_size)


def test_state_of_another_source_is_refused() -> None:
    state = OrderState(epoch=2, consumed=30).to_dict(source="a")
    assert OrderState.from_dict(state, source="a") == OrderState(epoch=2, consumed=30)
    with pytest.raises(IdentityMismatch):
        OrderState.from_dict(state, source="b")
