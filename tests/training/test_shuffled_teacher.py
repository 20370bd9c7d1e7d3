"""The control whose features belong to other units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_corpus import SmallCorpus
from tiny_extraction import tiny_extract

from advl_pipeline.cache.reader import FeatureStore, open_cache
from advl_pipeline.training.teacher_features import ShuffledFeatures, Tower, cached_teacher, shuffled_teacher


@pytest.fixture(name="stores")
def _stores(small_corpus: SmallCorpus) -> list[tuple[Tower, FeatureStore]]:
    teachers = [cached_teacher(open_cache(path)) for path in small_corpus.caches]
    images: list[tuple[Tower, object]] = [("image", teacher.image) for teacher in teachers]
    texts: list[tuple[Tower, object]] = [("text", teacher.text) for teacher in teachers]
    stores = [(tower, store) for tower, store in (*images, *texts) if isinstance(store, FeatureStore)]
    assert [tower for tower, _ in stores] == ["image", "text"]
    return stores


def _sources(store: FeatureStore, *, seed: int, tower: Tower) -> list[int]:
    """Position of the unit whose features each unit gets; rows of the store are told apart by their content."""
    ids = list(store.ids)
    own_UD = np.asarray(store.global_features(ids), dtype=np.float32)
    given_UD = np.asarray(ShuffledFeatures(store, seed=seed, tower=tower).global_features(ids), dtype=np.float32)
    distance_UU = np.abs(given_UD[:, None] - own_UD[None]).max(axis=2)
    assert (np.sort(distance_UU, axis=1)[:, :2].sum(axis=1) > 0).all(), "two units of the store have equal features"
    return [int(index) for index in distance_UU.argmin(axis=1)]


@pytest.mark.parametrize("seed", range(4))
def test_no_unit_keeps_its_own_features_and_each_is_given_once(
    stores: list[tuple[Tower, FeatureStore]], seed: int
) -> None:
    for tower, store in stores:
        sources = _sources(store, seed=seed, tower=tower)
        assert sorted(sources) == list(range(len(sources)))
        assert all(source != own for own, source in enumerate(sources))


def test_two_towers_over_as_many_units_are_not_permuted_alike(stores: list[tuple[Tower, FeatureStore]]) -> None:
    _, store = stores[1]
    assert _sources(store, seed=0, tower="image") != _sources(store, seed=0, tower="text")
    assert _sources(store, seed=0, tower="text") != _sources(store, seed=1, tower="text")


def test_both_towers_of_a_teacher_are_permuted(small_corpus: SmallCorpus) -> None:
    teachers = [shuffled_teacher(cached_teacher(open_cache(path)), seed=0) for path in small_corpus.caches]
    towers = [tower for teacher in teachers for tower in (teacher.image, teacher.text) if tower is not None]
    assert len(towers) == 2
    assert all(isinstance(tower, ShuffledFeatures) for tower in towers)


def test_a_picture_without_boxes_lends_no_rows(tmp_path: Path) -> None:
    """Every fourth picture has none: rows come from another unit all the same, and from that unit alone."""
    tiny_extract(tmp_path / "pictures", tmp_path / "cache")
    store = open_cache(tmp_path / "cache").image
    assert store is not None
    ids = list(store.ids)
    rows_of = {unit: np.asarray(store.token_features([unit])[0]) for unit in ids}
    shuffled = ShuffledFeatures(store, seed=0, tower="image")
    given, lengths = shuffled.token_features(ids)
    assert lengths.tolist() == [len(rows_of[unit]) for unit in ids]
    assert 0 in lengths
    for unit, rows in zip(ids, np.split(given, np.cumsum(lengths)[:-1]), strict=True):
        donors = [
            other for other in ids if other != unit and all((rows_of[other] == row).all(1).any() for row in rows)
        ]
        assert donors, f"the rows of {unit} are its own, or of several units"
