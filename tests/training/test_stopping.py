"""Signals and second writers, at real processes: what was begun is finished once, and to the same bytes."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chaos_finetune import (
    finetune_command,
    reference_finetune,
    require_equal,
    stop_and_resume_finetune,
)
from run_logs import metrics

from advl_pipeline.training.run import run_finetune

pytestmark = pytest.mark.timeout(600)

Reference = tuple[dict[str, Any], float]


@pytest.fixture(scope="module")
def reference(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return reference_finetune(small_corpus, tmp_path_factory.mktemp("reference") / "run")


def test_a_signal_ends_a_finetuning_after_its_step_and_the_same_command_goes_on(
    small_corpus: Any, tmp_path: Path, reference: Reference
) -> None:
    computed, span = reference
    finished = [
        stop_and_resume_finetune(small_corpus, computed, share * span, tmp_path / str(share), number=number)
        for number, share in ((signal.SIGTERM, 0.3), (signal.SIGINT, 0.6))
    ]
    # It had no checkpoint of its own: without the one that the signal left it would have begun anew.
    assert any(0 < steps < 40 for steps in finished), finished


def advl(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "advl_cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_writer_is_refused_by_name_and_changes_nothing(
    small_corpus: Any, tmp_path: Path, reference: Reference
) -> None:
    run = tmp_path / "run"
    command = finetune_command(small_corpus, run)[3:]
    first = advl(*command)
    wait_for(first, run / "run.json")
    first.send_signal(signal.SIGSTOP)
    try:
        second = advl(*command, "--no-resume")
        _, said = second.communicate(timeout=200)
        assert second.returncode == 7, said
        assert re.search(rf"why: +process {first.pid} on .*, since \d{{4}}-\d\d-\d\d", said), said
    finally:
        first.send_signal(signal.SIGCONT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    require_equal(reference[0], run, "a second one was refused")
    steps = [record["step"] for record in metrics(run)]
    assert steps == sorted(set(steps))


def test_a_pretraining_goes_on_after_the_step_that_a_signal_came_in(small_corpus: Any, tmp_path: Path) -> None:
    def words(output: Path) -> list[object]:
        steps = ("--warmup-steps", 160, "--joint-steps", 20, "--batch-size", 4)
        return ["pretrain", "--data-root", small_corpus.data_root, "--output", output, *steps]

    whole = advl(*words(tmp_path / "whole"))
    stopped = advl(*words(tmp_path / "stopped"))
    # Its first checkpoint, of step 100: before it there is no folder.
    wait_for(stopped, tmp_path / "stopped" / "checkpoint.safetensors")
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert shlex.join(["advl", *map(str, words(tmp_path / "stopped"))]) in said
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    resumed = advl(*words(tmp_path / "stopped"))
    _, said = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert "resumes at step" in said
    _, said = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "stopped")]
    assert files[0] == files[1]
    assert "checkpoint.safetensors" not in files[0]


def test_a_signal_ends_an_evaluation_with_the_code_that_the_docs_name(small_corpus: Any, tmp_path: Path) -> None:
    run_finetune(small_corpus.config(tmp_path / "run", method="plain", cache=(), log_with=""))
    command = ["evaluate", tmp_path / "run", "--on", "val", "--data-root", small_corpus.data_root]
    stopped = advl(*command)
    time.sleep(2)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert shlex.join(["advl", *map(str, command)]) in said
    again = advl(*command)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said


STUDY = """
name = "stopped"
question = "Does it end whole?"
methods = ["plain"]
shots = [8]
seeds = [0, 1]

[training]
num_steps = 60
batch_size = 4
checkpoint_every = 1000

[[settings]]
name = "small"
dataset = "scenes-vcr"
tasks = ["vcr-q2a"]
metrics = ["q2a"]
student = "scenes-small"
test_sets = ["val"]
"""


def test_a_signal_ends_the_workers_of_a_study_after_their_steps(small_corpus: Any, tmp_path: Path) -> None:
    file = tmp_path / "stopped.toml"
    file.write_text(STUDY, encoding="utf-8")

    words = ("study", file, "--output", tmp_path / "study", "--data-root", small_corpus.data_root, "--workers", 2)
    cells = tmp_path / "cells"
    stopped = advl(*words)
    deadline = time.monotonic() + 240
    while len(list(cells.glob("*/run.json"))) < 2:
        assert stopped.poll() is None, stopped.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert "The study was stopped by SIGTERM" in said, said
    left = {path.parent.name: path for path in cells.glob("*/checkpoint.safetensors")}
    assert left, said
    finished = {name: len((cells / name / "metrics.jsonl").read_text().splitlines()) for name in left}
    resumed = advl(*words)
    _, said = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, said
    for steps in finished.values():
        assert f"resumes at step {steps + 1} " in said
    for cell in (file.parent for file in cells.glob("*/run.json")):
        assert json.loads((cell / "result.json").read_text())["num_steps"] == 60
        assert [record["step"] for record in metrics(cell)] == list(range(60))
        assert (cell / "evaluation" / "val.json").exists()
