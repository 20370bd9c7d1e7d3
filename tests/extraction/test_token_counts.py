"""A forecast counts the tokens of a sample; what it says of all of them holds within its interval."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_extraction import TinyDataset, tiny_config, tiny_extract

from advl_pipeline.extraction import run
from advl_pipeline.extraction.sources import image_tokens_of, repeated


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(0, 300))
def test_all_units_counted_are_exact_and_a_sample_keeps_its_mean(lengths: list[int], more: int) -> None:
    counted = np.array(lengths, np.int32)
    found = repeated(counted, len(lengths) + more)
    assert len(found.lengths_N) == len(lengths) + more
    assert found.num_counted == len(lengths)
    whole = np.resize(counted, len(lengths) * (more // len(lengths) + 1))
    assert found.lengths_N[: len(whole)].mean() == pytest.approx(counted.mean())
    if more == 0:
        np.testing.assert_array_equal(found.lengths_N, counted)
        assert found.margin == 0.0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    population = rng.gamma(4.0, 6.0, 4000).astype(np.int32)
    inside = 0
    for _ in range(400):
        found = repeated(rng.choice(population, 300, replace=False), len(population))
        claimed = int(found.lengths_N.sum())
        inside += abs(claimed - int(population.sum())) <= found.margin * claimed
    assert 0.92 <= inside / 400 <= 0.98


def test_a_forecast_counts_a_sample_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = tiny_extract(tmp_path / "data", tmp_path / "cache", dry_run=True).estimates
    monkeypatch.setattr(run, "FORECAST_TEXTS", 7)
    sampled = tiny_extract(tmp_path / "data", tmp_path / "cache", dry_run=True).estimates
    written = tiny_extract(tmp_path / "data", tmp_path / "cache").estimates
    for all_of_it, some, real in itertools.zip_longest(exact, sampled, written):
        assert all_of_it.num_units == some.num_units == real.num_units
        assert all_of_it.num_token_rows == real.num_token_rows
        assert some.num_token_rows == pytest.approx(real.num_token_rows, rel=3 * some.margin)
    image, text = sampled
    assert (image.num_counted, image.margin) == (image.num_units, 0.0)
    assert text.num_counted == 7 < text.num_units
    assert text.margin > 0
    assert written[1].num_counted == written[1].num_units


def test_boxes_of_the_first_picture_spare_opening_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, config = TinyDataset(tmp_path), tiny_config(tmp_path / "cache", confidence=True)
    assert not len(dataset[0].image.boxes_R4)
    assert image_tokens_of(config, dataset) == "boxes"
    boxed = next(example for example in map(dataset.__getitem__, range(len(dataset))) if len(example.image.boxes_R4))
    monkeypatch.setattr(TinyDataset, "__getitem__", lambda self, index: boxed)
    monkeypatch.delattr(TinyDataset, "image_units")
    assert image_tokens_of(config, dataset) == "boxes"
