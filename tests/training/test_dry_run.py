"""The forecast of an epoch: its arithmetic as properties, and the command against a run that follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import advl
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import SmallCorpus

from advl_pipeline.training.dry_run import Forecast

seconds = st.floats(1e-4, 10)
forecasts = st.builds(
    Forecast,
    num_steps=st.integers(1, 10_000),
    model=seconds,
    model_on_cores=st.floats(0, 80),
    preparing=seconds,
    num_bytes=st.floats(0, 1e10),
    cores=st.integers(1, 64),
    workers=st.integers(1, 16),
    bytes_per_second=st.none() | st.floats(1e6, 1e10),
)


@given(found=forecasts, more=st.integers(1, 8))
def test_an_epoch_takes_what_its_slowest_part_takes_and_more_of_anything_never_longer(
    found: Forecast, more: int
) -> None:
    assert found.epoch_seconds == found.num_steps * found.parts[found.bottleneck]
    assert all(found.seconds_per_step >= part for part in found.parts.values())
    assert found.seconds_per_step >= found.model
    # Whatever the machine, no core does two things at once.
    work = found.model_on_cores + found.preparing
    assert found.seconds_per_step * found.cores >= work * (1 - 1e-9)
    assert ("the disk" in found.parts) == (found.bytes_per_second is not None)
    for changes in ({"cores": found.cores + more}, {"workers": found.workers + more}, {"bytes_per_second": None}):
        assert replace(found, **changes).seconds_per_step <= found.seconds_per_step


def test_a_gpu_waits_for_one_core_and_not_for_eight() -> None:
    """64 photos of 11 ms each beside a step of 100 ms."""
    costs = {"num_steps": 10, "model": 0.1, "model_on_cores": 0.0, "preparing": 64 * 0.011, "num_bytes": 64 * 3e5}
    one, eight = (Forecast(**costs, cores=cores, workers=cores) for cores in (1, 8))
    assert (one.bottleneck, eight.bottleneck) == ("preparing batches", "the model")
    assert one.epoch_seconds == pytest.approx(7.04)
    assert eight.epoch_seconds == pytest.approx(1.0)
    assert replace(eight, bytes_per_second=50e6).bottleneck == "the disk"


def test_the_command_writes_nothing_and_says_it(
    small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = advl(
        capsys,
        *("finetune", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root),
        *("--task", "vcr-q2a", "--method", "naive-kd", "--cache", small_corpus.caches[0]),
        *("--output", "run", "--batch-size", 4, "--dry-run", "--step-ms", 250, "--disk-mb-s", 100, "--json"),
    )
    assert code == 0
    told = json.loads(printed)
    assert list(tmp_path.iterdir()) == []
    assert told["num_steps"] == 4  # Sixteen questions.
    assert told["model"] == 0.25
    assert told["seconds_by_part"]["the model"] == 0.25
    assert 0 < told["preparing"] < 1
    assert told["num_bytes"] > 1e4
    assert told["epoch_seconds"] == pytest.approx(4 * max(told["seconds_by_part"].values()))
    assert (told["bottleneck"], told["epoch_seconds"]) == ("the model", pytest.approx(1.0))
