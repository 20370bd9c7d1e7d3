"""Features are found by id, from any process, and as any reader of Zarr finds them."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from objects import sum_tokens
from tiny_extraction import tiny_extract

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


def units_by_zarr(root: Path, modality: str) -> dict[str, dict[str, Any]]:
    """Read what a cache holds of each unit as `docs/cache-format.md` says, with zarr-python and json alone."""
    group = zarr.open_group(root / modality, mode="r")
    arrays = {name: array[:] for name, array in group["tokens"].arrays()}
    quarantined = json.loads((root / "records/complete.json").read_text())["quarantined"][modality]
    values = arrays.pop("values")
    if "scales" in arrays:
        values = (values.astype(np.float32) * arrays.pop("scales")[:, None]).astype(np.float16)
    stretches = [
        slice(start, start + length)
        for start, length in zip(arrays.pop("starts"), arrays.pop("lengths"), strict=True)
    ]
    units = zip([bytes(row).hex() for row in group["unit_id"][:]], group["global"][:], stretches, strict=True)
    return {
        unit_id: {"global": row, "tokens": values[rows], **{name: array[rows] for name, array in arrays.items()}}
        for unit_id, row, rows in units
        if unit_id not in quarantined
    }


@pytest.mark.parametrize("changes", [{"dtype": "float16"}, {"dtype": "int8", "select_texts": 0.5}], ids=str)
@pytest.mark.filterwarnings("ignore:Object at")
def test_any_zarr_reader_finds_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "cache", **changes)
    cache = open_cache(tmp_path / "cache")
    attributes = zarr.open_group(tmp_path / "cache", mode="r").attrs["advl"]
    assert attributes["identity"] == json.loads((tmp_path / "cache/identity.json").read_text()) == cache.identity
    for modality, store in cache.stores().items():
        units = units_by_zarr(tmp_path / "cache", modality)
        assert sorted(units) == sorted(store.ids)
        for unit_id, features in units.items():
            np.testing.assert_array_equal(store.global_features([unit_id])[0], features.pop("global"))
            np.testing.assert_array_equal(store.token_features([unit_id])[0], features.pop("tokens"))
            columns = store.token_columns([unit_id])
            assert columns.keys() == features.keys()
            for name, rows in features.items():
                np.testing.assert_array_equal(columns[name], rows)
