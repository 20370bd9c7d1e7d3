"""Ctrl-C has its exit code from the first line of our code on, and stops a build at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_rows import choice_row, write_json_lines

# Stops the process inside an import, where a person's Ctrl-C falls while a command starts.
_INTERRUPTED_IMPORT = """
import os, runpy, signal, sys
wanted, *sys.argv = sys.argv[1:]
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
runpy.run_module("advl_cli", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["click", "advl_cli.finetune", "torch"])
def test_ctrl_c_while_a_command_starts_exits_with_130(module: str, tmp_path: Path) -> None:
    data = write_json_lines(tmp_path / "mine.jsonl", [choice_row(number) for number in range(8)])
    words = ["advl", "finetune", "--data", str(data), "--method", "plain", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_IMPORT, module, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "next:" in done.stderr


# What the interpreter does at its end takes seconds once torch is loaded: first what was registered, then modules go.
_SLOW_TO_END = """
import atexit, sys, time
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(2)
if sys.argv.pop(1) == "registered":
    atexit.register(time.sleep, 2)
else:
    slow = Slow()
sys.argv[0] = "advl"
from advl_cli.__main__ import start
start()
"""


@pytest.mark.parametrize(
    ("number", "end", "words", "code"),
    [(signal.SIGTERM, "registered", "--version", 0), (signal.SIGINT, "modules", "finetun", 2)],
)
def test_a_signal_after_the_outcome_leaves_the_exit_code(
    number: signal.Signals, end: str, words: str, code: int
) -> None:
    command = [sys.executable, "-c", _SLOW_TO_END, end, words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output


def test_ctrl_c_stops_the_building_of_a_corpus_at_once(tmp_path: Path) -> None:
    # A full corpus takes seconds to plan.
    sizes = {"train": 200, "caption-scenes": 100}
    sizes |= dict.fromkeys(("val", "test", "unseen", "compositional", "shift-inputs"), 4)
    words = ["scenes", "build", "--data-root", str(tmp_path), "--workers", "2"]
    words += [word for name, size in sizes.items() for word in (f"--num-{name}", str(size))]
    process = subprocess.Popen([sys.executable, "-m", "advl_cli", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any(tmp_path.rglob("*.jpg")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 130, output
    # Two jobs of a hundred pictures each take about nine seconds when they are waited for.
    assert time.monotonic() - began < 3.0
    assert not (tmp_path / "scenes").exists()
