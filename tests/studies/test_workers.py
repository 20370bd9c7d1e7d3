"""Worker processes of a study do not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
PROGRAM = """
import sys
from pathlib import Path
from waiting_cell import wait_in
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
