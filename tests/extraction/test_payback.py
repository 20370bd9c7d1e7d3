"""Whether a cache pays: the epoch from which it is cheaper than its teacher in every step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_extraction import TinyDataset, tiny_extract

from advl_cli.extract import when_it_pays
from advl_pipeline.extraction import run
from advl_pipeline.extraction.forecast import Estimate, payback, uses_per_epoch

COUNTS = st.integers(1, 10**6)


def of_units(modality: str, units: int, seconds: float, num_bytes: int) -> Estimate:
    return Estimate(
        modality=modality,
        num_units=units,
        num_counted=units,
        margin=0.0,
        num_token_rows=units,
        num_shards=1,
        num_bytes=num_bytes,
        seconds=seconds,
    )


@given(units=COUNTS, repeats=st.integers(1, 50), ms=st.integers(1, 10**4), size=COUNTS, speed=st.integers(1, 10**4))
def test_it_pays_from_that_epoch_on_and_not_before(units: int, repeats: int, ms: int, size: int, speed: int) -> None:
    estimate = of_units("image", units, units * ms / 1e3, units * size)
    found = payback([estimate], {"image": units * repeats}, (speed * 1e6, speed * 1e6))
    assert found.live == pytest.approx(repeats * units * ms / 1e3)
    assert found.cached == pytest.approx(repeats * units * size / (speed * 1e6))
    if found.epochs is None:
        assert found.live <= found.cached
        return
    assume(found.live - found.cached > 1e-6 * found.live)

    def gain(epochs: int) -> float:
        return epochs * (found.live - found.cached) - found.once

    rounding = 1e-6 * (found.once + found.epochs * found.live)
    assert gain(found.epochs) > -rounding
    assert gain(found.epochs - 1) <= rounding


def test_a_disk_that_is_slower_than_the_teacher_never_pays_and_confidences_do_not_count() -> None:
    images = of_units("image", 10, 1.0, 1000)
    found = payback([images, of_units("confidence", 10, 99.0, 10)], {"image": 10, "text": 40}, (1.0, 1.0))
    assert found.epochs is None
    assert (found.live, found.once) == (1.0, 1001.0)
    assert when_it_pays(found).startswith("a cache is cheaper than the teacher in every step: never; once 1001.0 s")


def test_a_dry_run_says_when_a_cache_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uses = uses_per_epoch(TinyDataset(tmp_path / "data"))
    result = tiny_extract(tmp_path / "data", tmp_path / "caches" / "cache", dry_run=True)
    found = result.payback
    assert not (tmp_path / "caches").exists()
    assert found.live == pytest.approx(
        sum((item.seconds or 0.0) / item.num_units * uses[item.modality] for item in result.estimates)
    )
    assert found.bytes_per_second > 0
    assert "s an epoch at" in when_it_pays(found)
    # Where nothing can be written, there is no speed to tell it from.
    monkeypatch.setattr(run, "disk_speed", lambda root: None)
    assert tiny_extract(tmp_path / "data", tmp_path / "cache", dry_run=True).payback is None
    assert tiny_extract(tmp_path / "data", tmp_path / "cache").payback is None
