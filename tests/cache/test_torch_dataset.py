"""Caches as a torch dataset: items by id, padding with a mask, copies in workers, and what is refused."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_extraction import tiny_extract
from torch.utils.data import DataLoader

from advl_pipeline.base.errors import ConfigError, CorruptCache
from advl_pipeline.cache.reader import UnknownUnit, open_cache
from advl_pipeline.cache.torch_dataset import CachedFeatures, FeatureCollator
from advl_pipeline.datasets.records import picture_unit_id, text_unit_id
from advl_pipeline.datasets.registry import open_dataset

PAGE = Path(__file__).parents[2] / "docs" / "caches.md"


def test_ids_of_files_and_texts_are_those_of_the_caches(small_corpus: Any) -> None:
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)
    text, picture = open_cache(small_corpus.caches[0]), open_cache(small_corpus.caches[1])
    example = dataset[0]
    wording = example.candidates[1].text
    split = example.candidates[1].context_length
    assert text_unit_id(wording) == text_unit_id(wording[:split], wording[split + 1 :])
    assert text.text.contains([text_unit_id(f"  {wording} ")]).all()
    assert picture.image.contains([picture_unit_id(example.image.path, example.image.boxes_R4.tolist())]).all()
    assert not picture.image.contains([picture_unit_id(example.image.path)]).any()


@pytest.mark.parametrize("travelled", [False, True])
def test_a_batch_holds_what_the_cache_holds(travelled: bool, small_corpus: Any) -> None:
    cache = open_cache(small_corpus.caches[0])
    ids = list(cache.text.ids)[5:0:-1]
    data = CachedFeatures([small_corpus.caches[0]], "text", unit_ids=ids, rows=[{"label": n} for n in range(5)])
    data = pickle.loads(pickle.dumps(data)) if travelled else data
    assert len(data) == 5
    batch = FeatureCollator()(data.__getitems__([3, 0]))
    assert batch.keys() == {"label", "teachers"}
    assert batch["label"].tolist() == [3, 0]
    found = batch["teachers"]["minilm-l6"]
    values, lengths = cache.text.token_features([ids[3], ids[0]])
    np.testing.assert_array_equal(found["global"].numpy(), cache.text.global_features([ids[3], ids[0]]))
    np.testing.assert_array_equal(found["tokens"][found["mask"]].numpy(), values)
    assert found["mask"].sum(1).tolist() == lengths.tolist()
    assert not found["tokens"][~found["mask"]].any()
    item = data[3]["teachers"]["minilm-l6"]
    torch.testing.assert_close(item["tokens"], found["tokens"][0, : lengths[0]])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_batch_read_at_once_is_that_of_its_items(dtype: str, tmp_path: Path) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "cache", dtype=dtype)
    cache = open_cache(tmp_path / "cache")
    assert cache.text is not None
    data = CachedFeatures([cache], "text")
    at_once = FeatureCollator()(data.__getitems__([2, 0, 1]))
    one_by_one = FeatureCollator()([data[2], data[0], data[1]])
    assert at_once["unit_id"] == one_by_one["unit_id"]
    features = at_once["teachers"][cache.teacher_name]
    assert features.keys() == {"global", "tokens", "spans", "mask"}
    for kind, values in one_by_one["teachers"][cache.teacher_name].items():
        assert torch.equal(features[kind], values), kind
    spans = cache.text.char_spans(at_once["unit_id"])
    np.testing.assert_array_equal(features["spans"][features["mask"]].numpy(), spans)
    assert not features["spans"][~features["mask"]].any()


def test_ready_batches_hold_each_item_once_in_an_order_of_its_seed(small_corpus: Any) -> None:
    data = CachedFeatures([small_corpus.caches[0]], "text")
    in_order, shuffled, again = (list(data.batches(16, seed=seed)) for seed in (None, 1, 1))
    ids, other_ids = ([unit for batch in part for unit in batch["unit_id"]] for part in (in_order, shuffled))
    assert ids == [item["unit_id"] for item in data]
    assert sorted(other_ids) == sorted(ids) != other_ids
    assert other_ids == [unit for batch in again for unit in batch["unit_id"]]
    loaded = next(iter(DataLoader(data, 16, collate_fn=FeatureCollator())))
    for kind, values in loaded["teachers"]["minilm-l6"].items():
        assert torch.equal(in_order[0]["teachers"]["minilm-l6"][kind], values), kind
    (counted,) = list(data.batches(len(data), collate=len))
    assert counted == len(data)


def executed(block: str, **changes: str) -> dict[str, Any]:
    """Run a block of the page with other places and texts; returns its names."""
    for here, there in changes.items():
        assert block.count(here) == 1
        block = block.replace(here, repr(there))
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def test_blocks_of_the_page_run_as_they_stand_there(small_corpus: Any) -> None:
    plain, ours, loop = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    cache = str(small_corpus.caches[0])
    executed(plain, **{'"caches/minilm-l6/scenes-vcr/train"': cache})
    names = executed(ours, **{'"caches/minilm-l6/scenes-vcr/train"': cache})
    store, values, lengths = names["cache"].text, names["values"], names["lengths"]
    assert values.shape == (lengths.sum(), store.token_dim)
    assert names["vectors"].shape == (3, store.global_dim)
    text = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)[0].candidates[0].text
    changes = {'"caches/minilm-l6/mine/train"': cache, '"Which colour is it? red"': text}
    batch = executed(loop, **changes)["batch"]
    assert batch["label"].tolist() == [1]
    assert batch["teachers"]["minilm-l6"]["mask"].all()


def test_all_units_of_several_teachers(small_corpus: Any, tmp_path: Any) -> None:
    data = CachedFeatures([small_corpus.caches[1]], "image", tokens=False)
    batch = FeatureCollator()([data[0], data[1]])
    assert set(batch["teachers"]["efficientnet-lite0"]) == {"global"}
    assert batch["unit_id"] == list(open_cache(small_corpus.caches[1]).stores()["image"].ids)[:2]
    with pytest.raises(ConfigError, match="no text features"):
        CachedFeatures([small_corpus.caches[1]], "text")
    with pytest.raises(ConfigError, match="one of each teacher"):
        CachedFeatures([small_corpus.caches[0]] * 2, "text")
    ids = list(open_cache(small_corpus.caches[0]).text.ids)[:1]
    with pytest.raises(ConfigError, match="2 rows for 1 units"):
        CachedFeatures([small_corpus.caches[0]], "text", unit_ids=ids, rows=[{}, {}])
    with pytest.raises(UnknownUnit, match="not in the cache"):
        CachedFeatures([small_corpus.caches[0]], "text", unit_ids=[text_unit_id("of another corpus")])


def test_a_shard_that_is_cut_while_the_cache_is_open_is_an_error_and_ends_no_process(tmp_path: Path) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "cache")
    data = CachedFeatures([tmp_path / "cache"], "text")
    data[0]
    for path in (tmp_path / "cache/text/tokens/values/c").rglob("*"):
        if path.is_file():
            os.truncate(path, 10)
    with pytest.raises(CorruptCache, match="A shard changed its length while the cache was open"):
        data[0]


def test_a_cache_opened_by_a_relative_path_is_read_after_a_change_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    data = CachedFeatures(["cache"], "text")
    monkeypatch.chdir("/")
    assert repr(data[0]) == repr(CachedFeatures([tmp_path / "cache"], "text")[0])
