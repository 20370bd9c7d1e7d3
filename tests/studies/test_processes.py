"""Processes share a grid, take over from one that was killed, and do not outlive their study."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import synthetic_runs
from synthetic_runs import TINY, run_trial, write_study_file

from advl_pipeline.base.compute import num_cores
from advl_pipeline.base.errors import AdvlError, DatasetError
from advl_pipeline.studies.gather import gather_study

SUPPORT = Path(__file__).parents[1] / "support"


def test_an_error_stops_the_study(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"scenes-1\.png") as caught:
        run_trial(tmp_path, executor=synthetic_runs.fail_first_seed, **TINY)
    assert caught.value.next_command == "restore it"


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import synthetic_runs
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.run import run_study

def execute(run):
    with open(sys.argv[3], "a") as log:
        log.write(f"{sys.argv[4]} {run.run_id}\\n")
    if sys.argv[4] == "victim":
        time.sleep(240)
    time.sleep(0.02)
    synthetic_runs.execute(run)

folder = Path(sys.argv[2])
run_study(
    StudyRunConfig(study=str(folder / "trial.toml"), output=folder / "study", caches=folder / "caches"),
    execute=execute, prepare=synthetic_runs.prepare, digest=synthetic_runs.digest,
)
"""


def start_worker(tmp_path: Path, name: str) -> subprocess.Popen[str]:
    arguments = [str(Path(synthetic_runs.__file__).parent), str(tmp_path), str(tmp_path / f"log-{name}"), name]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stderr=subprocess.PIPE, text=True)


def runs_executed_by(tmp_path: Path, name: str) -> list[str]:
    path = tmp_path / f"log-{name}"
    return [line.split()[1] for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_processes_share_a_grid_and_take_over_from_a_killed_one(tmp_path: Path) -> None:
    write_study_file(tmp_path, num_seeds=6, **TINY)
    victim = start_worker(tmp_path, "victim")
    deadline = time.monotonic() + 60
    while not runs_executed_by(tmp_path, "victim") and time.monotonic() < deadline:
        time.sleep(0.05)
    (held,) = runs_executed_by(tmp_path, "victim")
    workers = {name: start_worker(tmp_path, name) for name in ("one", "two")}

    def ran() -> list[str]:
        return [run for name in workers for run in runs_executed_by(tmp_path, name)]

    while len(ran()) < 11 and time.monotonic() < deadline + 60:
        time.sleep(0.05)
    assert len(ran()) == len(set(ran())) == 11
    assert held not in ran()
    # What is left is waited for.
    time.sleep(0.5)
    assert [worker.poll() for worker in workers.values()] == [None, None]
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=30)
    said = []
    for worker in workers.values():
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        said.append(errors)
    assert any(f"waiting for process {victim.pid} on" in errors for errors in said), said
    assert sorted(ran()) == sorted({*ran(), held})
    assert len(ran()) == 12
    assert gather_study(tmp_path / "study").num_finished == 12


def test_workers_execute_runs_side_by_side_in_processes_of_their_own_until_one_fails(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"scenes-1\.png"):
        run_trial(
            tmp_path, seeds="[1, 2, 3, 0]", executor=synthetic_runs.fail_first_seed, options={"workers": 2}, **TINY
        )
    seen = [path.read_text().split() for path in (tmp_path / "cells").rglob("seen-*")]
    assert len(seen) >= 5, "the last of six may have been stopped"
    assert gather_study(tmp_path / "study").num_finished >= 5
    assert {int(pid) for pid, _ in seen}.isdisjoint({os.getpid()})
    assert {threads for _, threads in seen} == {str(max(1, num_cores() // 2))}


def test_the_death_of_a_worker_is_told_and_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(AdvlError, match="worker of the study died"):
        run_trial(tmp_path, executor=synthetic_runs.die, options={"workers": 2}, **TINY)
    assert not multiprocessing.active_children()


PROGRAM = """
import sys
from pathlib import Path
from waiting_run import wait_in
from advl_pipeline.studies.run import run_in_processes

# A worker that ran this file again would start workers of its own.
list(run_in_processes([Path(sys.argv[1])] * 3, wait_in, num_workers=2))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_study(tmp_path: Path, sent: signal.Signals) -> None:
    program, begun = tmp_path / "program.py", tmp_path / "begun"
    program.write_text(PROGRAM, encoding="utf-8")
    begun.mkdir()
    environment = os.environ | {"PYTHONPATH": str(SUPPORT)}
    study = subprocess.Popen([sys.executable, program, begun], env=environment, stderr=subprocess.DEVNULL)
    workers: list[int] = []
    try:
        while len(workers := [int(path.name) for path in begun.iterdir()]) < 2:
            assert study.poll() is None
            time.sleep(0.05)
        study.send_signal(sent)
        study.wait(timeout=30)
        deadline = time.monotonic() + 30
        while any(map(_is_running, workers)):
            assert time.monotonic() < deadline, "a worker outlived its study"
            time.sleep(0.05)
    finally:
        study.kill()
        for worker in filter(_is_running, workers):
            os.kill(worker, signal.SIGKILL)


def _is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A process that nobody has waited for is over all the same.
    return status.rpartition(")")[2].split()[0] != "Z"
