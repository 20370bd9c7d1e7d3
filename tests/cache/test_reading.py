"""Features are found by id, padded on request, from any process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from objects import sum_tokens

from advl_pipeline.cache.reader import FeatureStore, UnknownUnit, open_cache


@pytest.fixture
def store(pristine: Path) -> FeatureStore:
    found = open_cache(pristine / "cache").text
    assert found is not None
    return found


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


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:lance is not fork-safe")
def test_caches_travel_to_other_processes(pristine: Path, method: str) -> None:
    cache = open_cache(pristine / "cache")
    expected = float(cache.text.token_features(list(cache.text.ids))[0].astype(np.float64).sum())
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=sum_tokens, args=(cache, queue))
    worker.start()
    found = queue.get(timeout=120)
    worker.join()
    assert found == expected
