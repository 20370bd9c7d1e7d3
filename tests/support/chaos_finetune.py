"""Kill real finetunes at random moments, and compare what they resume to with an uninterrupted run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run_logs import losses
from small_corpus import SmallCorpus
from tiny_extraction import tree_bytes


def finetune_command(corpus: SmallCorpus, output: Path) -> list[str]:
    """Return a finetune of both steps by `advl`, with a checkpoint every other step."""
    caches = [part for cache in corpus.caches for part in ("--cache", str(cache))]
    return [
        *(sys.executable, "-m", "advl_cli", "finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
        *("--data-root", str(corpus.data_root), "--output", str(output), "--num-steps", "28"),
        *("--adapt-steps", "12", "--batch-size", "4", "--confidence-folds", "2", "--checkpoint-every", "2"),
        *caches,
    ]


def trained(run: Path) -> dict[str, Any]:
    """Return all that a finished run computed: the bytes of its weights, and its log without the clock."""
    weights = {name: (run / name).read_bytes() for name in ("model.safetensors", "heads.safetensors")}
    return {**weights, "log": losses(run), "files": sorted(tree_bytes(run))}


def reference_finetune(corpus: SmallCorpus, output: Path) -> tuple[dict[str, Any], float]:
    """Finetune without interruption; returns what was computed and for how many seconds it wrote."""
    process = _start_finetune(finetune_command(corpus, output))
    _wait_for(process, output / "run.json")
    begin = time.perf_counter()
    _finish_finetune(process)
    return trained(output), time.perf_counter() - begin


def kill_and_resume_finetune(
    corpus: SmallCorpus, reference: dict[str, Any], span: float, output: Path, *, seed: int
) -> tuple[float, int]:
    """Kill one finetune once at a random moment of its writing, resume it, and compare.

    Args:
        corpus: what it trains on.
        reference: what an uninterrupted run computed.
        span: seconds that an uninterrupted run writes for.
        output: a new run folder.
        seed: chooses the moment.

    Returns:
        The moment of the kill in seconds after the first write, and how many steps were logged by then.

    Raises:
        AssertionError: the resumed run differs, or litter remains.
    """
    command = finetune_command(corpus, output)
    moment = random.Random(seed).uniform(0, span)
    process = _start_finetune(command)
    _wait_for(process, output / "run.json")
    time.sleep(moment)
    process.kill()
    process.communicate()
    log = output / "metrics.jsonl"
    num_logged = len(log.read_bytes().splitlines()) if log.exists() else 0
    _finish_finetune(_start_finetune(command))
    found = trained(output)
    different = [name for name, value in reference.items() if found[name] != value]
    if different:
        files = sorted(set(found["files"]) ^ set(reference["files"]))
        raise AssertionError(
            f"killed after {moment:.3f} s with {num_logged} steps logged, resumed differently: {different}; "
            f"files on one side only: {files}"
        )
    return moment, num_logged


def _start_finetune(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish_finetune(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=600)
    if process.returncode != 0:
        raise AssertionError(f"exit code {process.returncode}: {said[-2000:]}")


def _wait_for(process: subprocess.Popen[str], path: Path) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.002)
