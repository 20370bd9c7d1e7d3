"""The user's workflow at official sizes: check, plan an extraction, draw low-shot lists, train 20 steps, predict.

python -m benchmarks.rehearsal [--datasets vcr,snli-ve,vqa-v2] [--share 1.0] [--folder DIR]

Each command runs in a separate process; its processor time and peak resident memory are measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.made_up import write_mirror

MAX_GIB = 4.0
"""Memory limit of every command."""

SHOTS = 200
HELD_OUT = 400
SHORT = ("--num-steps", "20", "--batch-size", "8")
SHORT_OF_ADVL = ("--adapt-steps", "20", "--confidence-folds", "2")
PREDICTED = {"vcr": "val", "vqa-v2": "val", "snli-ve": "test"}


def main() -> int:
    """Run the rehearsal and print results; exit code 1 if a command fails or exceeds its memory limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default=",".join(PREDICTED), help="Which, separated by commas.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the official number of items.")
    parser.add_argument("--folder", type=Path, help="Where to build the mirrors [default: a temporary folder].")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        good = [rehearse(name, folder / name, share=options.share) for name in options.datasets.split(",")]
    return 0 if all(good) else 1


def rehearse(name: str, folder: Path, *, share: float) -> bool:
    """Build the mirror of a dataset and run the user's commands in turn; their output goes to a log next to it.

    Returns whether all succeeded within the memory limit.
    """
    folder.mkdir(parents=True)
    began = time.perf_counter()
    write_mirror(name, folder / "datasets", share=share, held_out=HELD_OUT)
    print(f"{name}: mirror built in {time.perf_counter() - began:.0f} s", flush=True)
    teacher = ("--teacher", "minilm-l6", "--dataset", name)
    # A run on the full split needs units that the small cache lacks, so it has no teacher.
    trained = ("finetune", "--dataset", name, "--student", "scenes-small", *SHORT)
    cache = ("--cache", f"caches/minilm-l6/{name}/train-shots{SHOTS}-seed0")
    commands: list[tuple[str, Sequence[str]]] = [
        ("check", ("datasets", "check", name, "--split", "train")),
        ("draw a list of 1,000", ("datasets", "subset", name, "--shots", "1000", "--output", "1000.json")),
        ("plan the extraction of all of it", ("extract", *teacher, "--dry-run")),
        (f"extract {SHOTS} questions", ("extract", *teacher, "--shots", str(SHOTS), "--confidence-folds", "2")),
        (
            f"20 + 20 steps of advl on {SHOTS}",
            (*trained, "--method", "advl", *SHORT_OF_ADVL, "--shots", str(SHOTS), *cache, "--output", "advl"),
        ),
        ("20 steps of plain on all of it", (*trained, "--method", "plain", "--output", "plain")),
        (f"predict {HELD_OUT} items", ("predict", "plain", "--on", PREDICTED[name])),
    ]
    good = [_run(name, what, words, folder) for what, words in commands]
    return all(good)


def _run(name: str, what: str, words: Sequence[str], folder: Path) -> bool:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ADVL_")}
    began = time.perf_counter()
    with (folder.parent / f"{name}.log").open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "advl_cli", *words], cwd=folder, env=environment, stdout=file, stderr=file
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    gib = usage.ru_maxrss / 2**20
    is_good = process.returncode == 0 and gib <= MAX_GIB
    times = f"{usage.ru_utime + usage.ru_stime:8.1f} s of processor time, {time.perf_counter() - began:8.1f} s"
    print(f"{'PASS' if is_good else 'FAIL'}  {name:<8} {what:<40} {times}, {gib:5.2f} GiB", flush=True)
    return is_good


if __name__ == "__main__":
    sys.exit(main())
