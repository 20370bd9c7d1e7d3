"""Signals and second writers, at real processes: what was begun is finished once, and to the same bytes."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from chaos_finetune import NUM_STEPS, Finetuning, train_in_threads
from commands import complaint, printed
from real_processes import Running, main_with, start, start_advl
from run_logs import load_json, metrics

pytestmark = pytest.mark.timeout(600)


def require_there(process: Running, file: Path) -> None:
    assert process.wait_for(file), process.messages()


@pytest.mark.slow
def test_a_run_that_is_killed_doubled_and_stopped_is_the_uninterrupted_one(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    computed, span = Finetuning(small_corpus, tmp_path / "whole").run_alone()
    run = tmp_path / "run"
    job = Finetuning(small_corpus, run, checkpoint_every=1)
    killed = job.start()
    while job.progress() < 3:
        assert killed.is_running(), killed.messages()
        time.sleep(0.01)
    killed.send(signal.SIGKILL)
    killed.wait()
    assert not (run / "result.json").exists()
    # The command is written when the run begins. On another machine the caches lie elsewhere.
    words = shlex.split(load_json(run / "environment.json")["command"])[1:]
    words[words.index("--checkpoint-every") + 1] = "1000"
    text, image = (shutil.copytree(cache, tmp_path / cache.name) for cache in small_corpus.caches)
    moved, swapped = (
        [dict(zip(map(str, small_corpus.caches), caches, strict=True)).get(word, word) for word in words]
        for caches in ((text, image), (image, text))
    )
    code, stderr = complaint(capsys, *swapped)
    assert (code, "cache.1." in stderr) == (3, True), stderr
    first = start_advl(*moved)
    while "resumes at step" not in first.messages():
        assert first.is_running(), first.messages()
        time.sleep(0.01)
    num_killed = job.progress()
    time.sleep(0.3 * span)
    first.send(signal.SIGSTOP)
    try:
        code, stderr = complaint(capsys, *moved, "--no-resume")
        assert code == 7, stderr
        assert re.search(rf"why: +process {first.pid} on .*, since \d{{4}}-\d\d-\d\d", stderr), stderr
    finally:
        first.send(signal.SIGCONT)
    first.send(signal.SIGINT)
    assert first.wait() == 130, first.messages()
    assert "the same command again" in first.messages()
    assert "Traceback" not in first.messages()
    # It wrote no checkpoint before the signal: what it did is in the one that the signal left.
    num_done = job.progress()
    assert num_killed < num_done < NUM_STEPS
    _, messages = printed(capsys, *moved)
    assert f"resumes at step {num_done + 1} " in messages
    job.require_equal(computed, "killed, doubled and stopped")


@pytest.mark.slow
def test_a_pretraining_goes_on_after_the_step_that_a_signal_came_in(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(output: Path) -> list[object]:
        steps = ("--warmup-steps", 40, "--joint-steps", 4, "--batch-size", 4)
        return ["scenes", "pretrain", "--data-root", small_corpus.data_root, "--output", output, *steps]

    often = {"advl_data.scenes.pretrain.CHECKPOINT_EVERY": 8}
    stopped = start(main_with, often, list(map(str, words(tmp_path / "stopped"))))
    # Before its first checkpoint there is no folder.
    require_there(stopped, tmp_path / "stopped" / "checkpoint.safetensors")
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 130, stopped.messages()
    assert shlex.join(["advl", *map(str, words(tmp_path / "stopped"))]) in stopped.messages()
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    _, stderr = printed(capsys, *words(tmp_path / "stopped"))
    assert "resumes at step" in stderr
    printed(capsys, *words(tmp_path / "whole"))
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "stopped")]
    assert files[0] == files[1]
    assert "checkpoint.safetensors" not in files[0]


def test_a_signal_ends_an_evaluation_with_the_code_that_the_docs_name(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_corpus.run(tmp_path / "run", method="plain", cache=(), log_with="")
    sets = [word for name in ("val", "test", "test-unseen", "test-shift") for word in ("--on", name)]
    command = ["evaluate", tmp_path / "run", *sets, "--data-root", small_corpus.data_root]
    stopped = start_advl(*command)
    require_there(stopped, tmp_path / "run" / "evaluation" / "val.json")
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 130, stopped.messages()
    assert shlex.join(["advl", *map(str, command)]) in stopped.messages()
    assert not (tmp_path / "run" / "evaluation" / "test-shift.json").exists()
    printed(capsys, *command)


STUDY = """
name = "stopped"
question = "Does it end whole?"
methods = ["plain"]
shots = [8]
seeds = [0, 1]

[training]
num_steps = 30
batch_size = 4
checkpoint_every = 1000
student_option = ["word_size=16"]

[[settings]]
name = "small"
dataset = "scenes-vcr"
tasks = ["vcr-q2a"]
student = "scenes-small"
test_sets = ["val"]
"""


@pytest.mark.slow
def test_a_signal_ends_the_workers_of_a_study_after_their_steps(small_corpus: Any, tmp_path: Path) -> None:
    file = tmp_path / "stopped.toml"
    file.write_text(STUDY, encoding="utf-8")

    words = ("study", file, "--output", tmp_path / "study", "--data-root", small_corpus.data_root, "--workers", 2)
    runs = tmp_path / "cells"
    stopped = start_advl(*words)
    # A run that has taken no step yet leaves nothing.
    while len(list(runs.glob("*/metrics.jsonl"))) < 2:
        assert stopped.is_running(), stopped.messages()
        time.sleep(0.01)
    stopped.send(signal.SIGTERM)
    code, messages = stopped.wait(), stopped.messages()
    assert code == 130, messages
    assert "The study was stopped by SIGTERM" in messages, messages
    left = {path.parent.name: path for path in runs.glob("*/checkpoint.safetensors")}
    assert left, messages
    finished = {name: len((runs / name / "metrics.jsonl").read_text().splitlines()) for name in left}
    resumed = start_advl(*words[:-2])  # One after another, in the process itself.
    code, messages = resumed.wait(), resumed.messages()
    assert code == 0, messages
    for steps in finished.values():
        assert f"resumes at step {steps + 1} " in messages
    for run in (file.parent for file in runs.glob("*/run.json")):
        assert load_json(run / "result.json")["num_steps"] == 30
        assert [record["step"] for record in metrics(run)] == list(range(30))
        assert (run / "evaluation" / "val.json").exists()


@pytest.mark.slow
def test_trainings_in_threads_are_those_of_processes_of_their_own(small_corpus: Any, tmp_path: Path) -> None:
    assert train_in_threads(small_corpus, tmp_path / "alone", tmp_path / "threads", offset=0.2, num_steps=4)
