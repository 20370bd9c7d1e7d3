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


@given(forecast=forecasts, more=st.integers(1, 8))
def test_an_epoch_takes_what_its_slowest_part_takes_and_more_of_anything_never_longer(
    forecast: Forecast, more: int
) -> None:
    assert forecast.epoch_seconds == forecast.num_steps * forecast.parts[forecast.bottleneck]
    assert all(forecast.seconds_per_step >= part for part in forecast.parts.values())
    assert forecast.seconds_per_step >= forecast.model
    # Whatever the machine, no core does two things at once.
    work = forecast.model_on_cores + forecast.preparing
    assert forecast.seconds_per_step * forecast.cores >= work * (1 - 1e-9)
    assert ("the disk" in forecast.parts) == (forecast.bytes_per_second is not None)
    for changes in (
        {"cores": forecast.cores + more},
        {"workers": forecast.workers + more},
        {"bytes_per_second": None},
    ):
        assert replace(forecast, **changes).seconds_per_step <= forecast.seconds_per_step


def test_a_gpu_waits_for_one_core_and_not_for_eight() -> None:
    """The batch has 64 photos of 11 ms each, beside a step of 100 ms."""
    costs = {"num_steps": 10, "model": 0.1, "model_on_cores": 0.0, "preparing": 64 * 0.011, "num_bytes": 64 * 3e5}
    one_core, eight_cores = (Forecast(**costs, cores=cores, workers=cores) for cores in (1, 8))
    assert (one_core.bottleneck, eight_cores.bottleneck) == ("preparing batches", "the model")
    assert one_core.epoch_seconds == pytest.approx(7.04)
    assert eight_cores.epoch_seconds == pytest.approx(1.0)
    assert replace(eight_cores, bytes_per_second=50e6).bottleneck == "the disk"


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
    forecast = json.loads(printed)
    assert list(tmp_path.iterdir()) == []
    assert forecast["num_steps"] == 4  # Sixteen questions.
    assert forecast["model"] == 0.25
    assert forecast["seconds_by_part"]["the model"] == 0.25
    assert 0 < forecast["preparing"] < 1
    assert forecast["num_bytes"] > 1e4
    assert forecast["epoch_seconds"] == pytest.approx(4 * max(forecast["seconds_by_part"].values()))
    assert (forecast["bottleneck"], forecast["epoch_seconds"]) == ("the model", pytest.approx(1.0))
