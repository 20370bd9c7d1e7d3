"""Two processes compute what one does on the same batch; processes that are not in step are refused."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import one_of_two
import pytest
from real_processes import Running, start, start_advl
from run_logs import load_json, metrics
from safetensors.torch import load_file

from advl_cli.main import main
from advl_pipeline.studies.gather import finetune_command

LAUNCHER_OF_ONE = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What `accelerate launch --cpu --num_processes 2` gives the one process that it starts."""

COMMON: dict[str, Any] = {
    # Dropout is drawn by each process for itself.
    "student_option": ("dropout=0.0",),
    "batch_size": 6,
    "adapt_texts": 24,
    "num_steps": 3,
    # Adam takes a gradient that is zero but for rounding for one of full size.
    "optimiser": "sgd",
    "learning_rate": 0.05,
}


def command(corpus: Any, output: Path, **changes: Any) -> list[str]:
    """Return the words of `advl finetune` for a configuration of the small corpus."""
    return shlex.split(finetune_command(corpus.config(output, **changes)))[1:]


METHODS: dict[str, dict[str, Any]] = {
    "advl": {"method": "advl"},
    "advl-contrast": {"method": "advl", "adapt_objective": "contrastive", "distance": "mse", "accumulate": 3},
    "tokens": {"method": "plain", "cache": (), "student": "uniter-tiny", "batch_size": None, "batch_tokens": 900,
               "accumulate": 3, "learning_rate": 1e-3, "clip_norm": 0.0},
}  # fmt: skip


def side_by_side(target: Callable[..., None], *arguments: Any) -> tuple[Running, Running]:
    """Call a function in two processes that find each other as those of a launcher do; wait for their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    first, second = (start(target, *arguments, **place, RANK=rank, LOCAL_RANK=rank) for rank in "01")
    first.wait()
    second.wait()
    return first, second


def said_by(*processes: Running) -> str:
    """Return what processes said that ended well."""
    for running in processes:
        assert running.wait() == 0, running.messages()[-3000:]
    return "".join(running.messages() for running in processes)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(name: str, small_corpus: Any, tmp_path: Path) -> None:
    changes = {**COMMON, **METHODS[name]}
    one, two = tmp_path / "one", tmp_path / "two"
    small_corpus.run(one, **changes)
    words = command(small_corpus, two, **changes)
    said = said_by(start(one_of_two.launch, words)) if name == "advl" else said_by(*side_by_side(main, words))
    assert " on 2 processes" in said
    assert said.count("run folder:") == 1
    require_equal_runs(one, two)


def require_equal_runs(one: Path, two: Path) -> None:
    for alone, shared in zip(metrics(one), metrics(two), strict=True):
        assert alone.keys() == shared.keys()
        assert alone["num_examples"] == shared["num_examples"]
        for key in alone:
            if key.startswith(("raw/", "weighted/", "grad_norm")):
                assert shared[key] == pytest.approx(alone[key], rel=2e-4, abs=2e-6), key
    expected, found = (load_file(run / "model.safetensors") for run in (one, two))
    moved = max(float((found[key] - value).abs().max()) for key, value in expected.items())
    assert moved < 2e-6, moved


def test_few_exchanges_a_step_and_the_landmarks_of_the_first_process(
    small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    changes = {**COMMON, "method": "advl", "known_words": known, "accumulate": 2, "adversarial": "both"}
    changes |= {"student": "villa-tiny", "recipe": "none"}
    one, two, watched = tmp_path / "one", tmp_path / "two", tmp_path / "watched.json"
    small_corpus.run(one, **changes)
    said_by(*side_by_side(one_of_two.run, watched, "--disturb", command(small_corpus, two, **changes)))
    require_equal_runs(one, two)
    steps = load_json(watched)
    assert all(step["others"] <= 4 for step in steps), steps
    # Regions, in each of two micro-batches: how many there are, what they hold, and their gradients.
    assert all(step["rows"] <= 6 for step in steps), steps
    # The first step of each phase learns what is reached; all that follow send while they compute.
    assert [step["early"] > 0 for step in steps] == [False, True, False, True, True], steps


def test_one_process_that_fails_ends_the_other_in_seconds(small_corpus: Any, tmp_path: Path) -> None:
    words = command(small_corpus, tmp_path / "run", **COMMON, method="advl")
    began = time.monotonic()
    first, second = side_by_side(one_of_two.run, tmp_path / "watched.json", "--raise", words)
    assert 0 not in (first.wait(), second.wait())
    assert "Unexpected error: ValueError: one of two" in second.messages()
    assert "Another process of this training ended" in first.messages(), first.messages()[-3000:]
    assert time.monotonic() - began < 60


def test_a_process_that_a_launcher_left_alone_is_refused(small_corpus: Any, tmp_path: Path) -> None:
    words = command(small_corpus, tmp_path / "run", method="plain", cache=())
    alone = start_advl(*words, **LAUNCHER_OF_ONE)
    code, said = alone.wait(), alone.messages()
    assert code == 2, said[-3000:]
    assert "not in step" in said
    assert "torchrun --nproc-per-node 2" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
