"""Two processes compute what one does on the same batch; processes that are not connected are refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import one_of_two
import pytest
from real_processes import Running, side_by_side, start, start_advl
from run_logs import load_json, metrics
from safetensors.torch import load_file

LAUNCHER_OF_ONE = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What `accelerate launch --cpu --num_processes 2` gives the one process that it starts."""

COMMON: dict[str, Any] = {
    # Dropout is drawn by each process for itself.
    "student_option": ("dropout=0.0",),
    "batch_size": 6,
    "adapt_texts": 24,
    "num_steps": 3,
    # Adam takes a gradient that is zero but for rounding for one of full size.
    "recipe": {"optimiser": "sgd"},
    "learning_rate": 0.05,
}


METHODS: dict[str, dict[str, Any]] = {
    "advl": {"method": "advl", "adapt_objective": "contrastive", "accumulate": 3},
    "tokens": {"method": "plain", "cache": (), "student": "uniter-tiny", "batch_size": None, "accumulate": 3,
               "learning_rate": 1e-3, "recipe": {"optimiser": "sgd", "batch_size": 900, "clip_norm": 0.0}},
}  # fmt: skip


def messages_of(*processes: Running) -> str:
    """Return the messages of processes, all of which ended well."""
    for running in processes:
        assert running.wait() == 0, running.messages()[-3000:]
    return "".join(running.messages() for running in processes)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(name: str, small_corpus: Any, tmp_path: Path) -> None:
    changes = {**COMMON, **METHODS[name]}
    single_run, joint_run = tmp_path / "one", tmp_path / "two"
    small_corpus.run(single_run, **changes)
    words = small_corpus.command(joint_run, **changes)
    messages = messages_of(start({"advl": one_of_two.launch, "tokens": one_of_two.accelerate}[name], words))
    assert " on 2 processes" in messages
    assert messages.count("run folder:") == 1
    require_equal_runs(single_run, joint_run)


def require_equal_runs(single_run: Path, joint_run: Path) -> None:
    for alone, shared in zip(metrics(single_run), metrics(joint_run), strict=True):
        assert alone.keys() == shared.keys()
        assert alone["num_examples"] == shared["num_examples"]
        for key in alone:
            if key.startswith(("raw/", "weighted/", "grad_norm")):
                assert shared[key] == pytest.approx(alone[key], rel=2e-4, abs=2e-6), key
    expected, actual = (load_file(run / "model.safetensors") for run in (single_run, joint_run))
    moved = max(float((actual[key] - value).abs().max()) for key, value in expected.items())
    assert moved < 2e-6, moved


@pytest.mark.slow
def test_few_exchanges_a_step_and_the_landmarks_of_the_first_process(
    small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    changes = {**COMMON, "method": "advl", "known_words": known, "accumulate": 2}
    changes |= {"student": "villa-tiny", "recipe": {"optimiser": "sgd", "loss": "softmax-choice"}}
    single_run, joint_run, watched = tmp_path / "one", tmp_path / "two", tmp_path / "watched.json"
    small_corpus.run(single_run, **changes)
    messages_of(*side_by_side(one_of_two.run, watched, "--disturb", small_corpus.command(joint_run, **changes)))
    require_equal_runs(single_run, joint_run)
    steps = load_json(watched)
    assert all(step["others"] <= 4 for step in steps), steps
    # Regions, in each of two micro-batches: how many there are, what they hold, and their gradients.
    assert all(step["rows"] <= 6 for step in steps), steps
    # The first step of each stage learns what is reached; all that follow send while they compute.
    assert [step["early"] > 0 for step in steps] == [False, True, False, True, True], steps


def test_what_is_added_up_together_does_not_depend_on_when_it_was_reached(tmp_path: Path) -> None:
    late, at_once = tmp_path / "late", tmp_path / "at_once"
    messages_of(*side_by_side(one_of_two.add_up, late, [[0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]))
    messages_of(*side_by_side(one_of_two.add_up, at_once, [[0, 1, 2, 3], [0, 1, 2, 3]]))
    assert load_json(late)[-1] == load_json(at_once)[-1] == [4, 4]


def test_one_process_that_fails_ends_the_other_in_seconds(small_corpus: Any, tmp_path: Path) -> None:
    words = small_corpus.command(tmp_path / "run", **COMMON, method="advl")
    began = time.monotonic()
    first, second = side_by_side(one_of_two.run, tmp_path / "watched.json", "--raise", words)
    assert 0 not in (first.wait(), second.wait())
    assert "Unexpected error: ValueError: one of two" in second.messages()
    assert "Another process of this training ended" in first.messages(), first.messages()[-3000:]
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("environment", "phrases"),
    [
        (LAUNCHER_OF_ONE, ("not connected", "torchrun --nproc-per-node 2")),
        ({"ACCELERATE_USE_FSDP": "true"}, ("over processes by FSDP is not",)),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, ("over processes by DeepSpeed is not",)),
    ],
)
def test_launchers_that_leave_a_process_alone_or_shard_models_are_refused(
    environment: dict[str, str], phrases: tuple[str, ...], small_corpus: Any, tmp_path: Path
) -> None:
    started = start_advl(*small_corpus.command(tmp_path / "run", method="plain", cache=()), **environment)
    code, messages = started.wait(), started.messages()
    assert code == 2, messages[-3000:]
    assert all(phrase in messages for phrase in phrases), messages
    assert "Traceback" not in messages
    assert not (tmp_path / "run").exists()
