"""Workers run no script again, and a signal stops a piece of work once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advl_pipeline.base.interruption import interruptible


class LetGo:
    """Is sent a signal while Python lets go of it, and drops whatever that raises."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


def work(number: signal.Signals) -> None:
    with interruptible("The work", kept="all is kept"):
        LetGo(number)
        time.sleep(30)


@pytest.mark.parametrize(("number", "named"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_is_not_lost_where_python_lets_go_of_an_object(number: signal.Signals, named: str) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"The work was stopped by {named}"):
        work(number)


UNGUARDED = """
from advl_pipeline.base.processes import worker_processes

print("begun", flush=True)
with worker_processes(2) as pool:
    print(sum(pool.map(abs, range(-9, 0))))
"""


def test_a_script_without_a_main_guard_has_workers(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(UNGUARDED, encoding="utf-8")
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "begun\n45\n"
