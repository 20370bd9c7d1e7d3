"""Trackers hold the steps of a run once, of one run, and need no network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from run_logs import tensorboard_of

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.packages import install_extra
from advl_pipeline.runs import names
from advl_pipeline.runs.run_folder import RunFolder


def test_a_resumed_log_replaces_the_steps_that_are_logged_again(tmp_path: Path) -> None:
    PartialState()
    for first, value in ((0, 1.0), (2, 7.0)):
        folder = RunFolder(tmp_path)
        folder.open_trackers(["tensorboard"], first_step=first)
        folder.log([{"step": step, "phase": "finetune", "raw/task": value} for step in range(first, first + 4)])
        folder.close()
        if first == 0:
            time.sleep(1.1)  # Event files are named by the second.
    logged = [(event.step, event.value) for event in tensorboard_of(tmp_path).Scalars("raw/task")]
    assert logged == [(0, 1.0), (1, 1.0), (2, 7.0), (3, 7.0), (4, 7.0), (5, 7.0)]


def test_a_run_that_goes_on_is_the_same_to_a_tracker_and_one_that_starts_over_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Started:
        def __init__(self, *names: Any, **options: Any) -> None:
            asked.append(options["id"])

        def start(self) -> None:
            pass

    monkeypatch.setattr("accelerate.tracking.WandBTracker", Started)
    for resume in (True, True, False):
        folder = RunFolder(tmp_path)
        folder.begin({}, config={}, command="", settings={}, caches=[], computed_on={}, resume=resume)
        folder.open_trackers(["wandb"], first_step=0)
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.filterwarnings("ignore")  # Of the packages themselves.
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_trackers_need_no_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    PartialState()
    folder = RunFolder(tmp_path)
    folder.open_trackers([name], first_step=0)
    folder.log([{"step": step, "phase": "finetune", "raw/task": 1.0 + step} for step in range(2)])
    folder.close()
    if name == "mlflow":
        import mlflow

        (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert run.data.metrics == {"raw/task": 2.0}
    else:
        assert list((tmp_path / names.WANDB).glob("offline-run-*/*.wandb"))


def test_a_tracker_that_is_absent_is_told_before_the_run_begins(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match="wandb is not installed") as refused:
        small_corpus.run(tmp_path / "run", log_with="wandb")
    assert install_extra("wandb") in refused.value.next_command
    assert not (tmp_path / "run").exists()
