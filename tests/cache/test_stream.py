"""Streaming gives every unit once per epoch, padded, in a resumable order, from any process."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_extraction import sum_tokens

from advl_pipeline.cache.reader import FeatureStore, UnknownUnit, open_cache
from advl_pipeline.cache.stream import FeatureBatch
from advl_pipeline.errors import IdentityMismatch


@pytest.fixture
def store(pristine: Path) -> FeatureStore:
    found = open_cache(pristine / "cache").text
    assert found is not None
    return found


def check_batch(store: FeatureStore, batch: FeatureBatch) -> None:
    assert batch.token_BMD is not None
    assert batch.mask_BM is not None
    values, lengths = store.token_features(batch.ids)
    assert batch.mask_BM.sum(dim=1).tolist() == lengths.tolist()
    np.testing.assert_array_equal(batch.token_BMD[batch.mask_BM].numpy(), values)
    assert not batch.token_BMD[~batch.mask_BM].any()
    np.testing.assert_array_equal(batch.global_BD.numpy(), store.global_features(batch.ids))


@pytest.mark.parametrize("bytes_in_flight", [0, 1, 64 << 20])
def test_every_unit_once(store: FeatureStore, bytes_in_flight: int) -> None:
    seen: list[str] = []
    for batch in store.batches(7, seed=1, bytes_in_flight=bytes_in_flight):
        check_batch(store, batch)
        seen += batch.ids
    assert sorted(seen) == sorted(store.ids)
    assert seen != list(store.ids)


def test_order_of_the_store_without_shuffling(store: FeatureStore) -> None:
    assert [unit for batch in store.batches(7, shuffle=False) for unit in batch.ids] == list(store.ids)


def test_epochs_differ(store: FeatureStore) -> None:
    stream = store.batches(7)
    first = [unit for batch in stream for unit in batch.ids]
    stream.advance_epoch()
    assert len(stream) == -(-len(store) // 7)
    second = [unit for batch in stream for unit in batch.ids]
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize("batches_before", [0, 1, 5])
@pytest.mark.parametrize(("batch_size", "world_size"), [(7, 1), (3, 1), (5, 2)])
def test_resumes_to_the_same_sequence(
    store: FeatureStore, batches_before: int, batch_size: int, world_size: int
) -> None:
    whole = [unit for batch in store.batches(4, seed=3, epoch=2) for unit in batch.ids]
    stream = store.batches(4, seed=3, epoch=2)
    iterator = iter(stream)
    for _ in range(batches_before):
        next(iterator)
    state = pickle.loads(pickle.dumps(stream.state_dict()))
    iterator.close()
    rest: dict[int, list[str]] = {}
    for rank in range(world_size):
        resumed = store.batches(batch_size, seed=3, rank=rank, world_size=world_size)
        resumed.load_state_dict(state)
        for number, batch in enumerate(resumed):
            rest.setdefault(number, []).extend(batch.ids)
    assert [unit for number in sorted(rest) for unit in rest[number]] == whole[4 * batches_before :]


def test_state_of_another_cache_is_refused(pristine: Path, store: FeatureStore) -> None:
    image = open_cache(pristine / "cache").image
    assert image is not None
    with pytest.raises(IdentityMismatch):
        image.batches(4).load_state_dict(store.batches(4).state_dict())
    with pytest.raises(IdentityMismatch):
        store.batches(4, seed=1).load_state_dict(store.batches(4, seed=2).state_dict())


def test_stopping_early_leaves_no_thread(store: FeatureStore) -> None:
    iterator = iter(store.batches(2, bytes_in_flight=1))
    next(iterator)
    assert any(thread.name == "advl-cache-reader" for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name == "advl-cache-reader" for thread in threading.enumerate())


def test_errors_of_the_thread_reach_the_loop(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(positions: np.ndarray, allocate: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(store, "padded_tokens", broken)
    with pytest.raises(OSError, match="gone"):
        list(store.batches(4))


def test_unknown_ids_raise(store: FeatureStore) -> None:
    known = store.ids[0]
    for ids in (["0" * 32], [known, "f" * 32], ["not an id"], ["z" * 32]):
        with pytest.raises(UnknownUnit):
            store.token_features(ids)
    assert store.contains([known, "0" * 32]).tolist() == [True, False]
    values, lengths = store.token_features([])
    assert values.shape == (0, store.token_dim)
    assert lengths.shape == (0,)


def test_one_unit_is_a_view(store: FeatureStore) -> None:
    values, _ = store.token_features([store.ids[3]])
    assert values.base is not None
    assert not values.flags.writeable
    many, _ = store.token_features(store.ids[:2])
    assert many.flags.writeable


def test_announcing_changes_nothing(store: FeatureStore) -> None:
    ids = list(store.ids)
    before = store.token_features(ids)[0].copy()
    store.announce(ids)
    np.testing.assert_array_equal(store.token_features(ids)[0], before)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:lance is not fork-safe")
def test_caches_travel_to_other_processes(pristine: Path, method: str) -> None:
    cache = open_cache(pristine / "cache")
    assert cache.text is not None
    expected = float(
        sum(batch.token_BMD.float().sum() for batch in cache.text.batches(8) if batch.token_BMD is not None)
    )
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=sum_tokens, args=(cache, queue))
    worker.start()
    found = queue.get(timeout=120)
    worker.join()
    assert found == expected
    assert isinstance(torch.from_numpy(cache.text.global_features(cache.text.ids[:1])), torch.Tensor)
