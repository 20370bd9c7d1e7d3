"""Processes: a place has one writer at a time, a signal stops a piece of work once, workers run no script again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from advl_pipeline.base.compute import peak_memory_bytes
from advl_pipeline.base.errors import InUse
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.base.process_lock import process_lock

HOLDER = """
import sys
from pathlib import Path
from advl_pipeline.base.process_lock import process_lock
with process_lock(Path(sys.argv[1]), "this run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(path: Path, script: str = HOLDER) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["killed", "ended"])
def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path, end: signal.Signals | None) -> None:
    path = tmp_path / "run/.lock"
    with start_holder(path) as holder:
        message = rf"Another process is writing this run(?s:.)*process {holder.pid} on"
        with pytest.raises(InUse, match=message), process_lock(path, "this run"):
            raise AssertionError
        if end is not None:
            holder.send_signal(end)
    with process_lock(path, "this run"):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_lock_whose_file_was_removed_under_its_holder_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with start_holder(path):
        path.unlink()
        with process_lock(path, "this run"):
            assert path.exists()


FORKING = """
import os, sys, time
from pathlib import Path
from advl_pipeline.base.process_lock import process_lock
with process_lock(Path(sys.argv[1]), "this run"):
    if os.fork() == 0:
        # The child says so itself: by then it has let go of what its parent holds.
        print(os.getpid(), flush=True)
        sys.stdin.readline()
        os._exit(0)
    time.sleep(60)
"""


def test_a_child_that_outlives_its_killed_parent_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run/.lock"
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        child = int(owner.stdout.readline())
        with pytest.raises(InUse, match=f"process {owner.pid} on"), process_lock(path, "this run"):
            raise AssertionError
        owner.kill()
        owner.wait()
        os.kill(child, 0)
        with process_lock(path, "this run"):
            pass
        owner.stdin.close()


def test_a_fork_that_leaves_the_block_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "run/.lock"
    script = HOLDER.replace(
        '    print("held"',
        "    import os\n    child = os.fork()\n    if not child:\n        sys.exit()\n"
        '    os.waitpid(child, 0)\n    print("held"',
    )
    with start_holder(path, script), pytest.raises(InUse), process_lock(path, "this run"):
        raise AssertionError


def test_what_the_lock_file_holds_is_only_told_never_needed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with start_holder(path):
        path.write_text("not json", encoding="utf-8")
        with pytest.raises(InUse, match="only just begun"), process_lock(path, "this run"):
            raise AssertionError


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


BLOCK_BYTES = 400_000_000
PROGRAM = f"""
import numpy as np
from advl_pipeline.base.compute import forget_peak_memory, peak_memory_bytes

begun = peak_memory_bytes()
block = np.ones({BLOCK_BYTES} // 2, np.uint8)
before = peak_memory_bytes()
del block
forget_peak_memory()
print(begun, before, peak_memory_bytes())
"""


def test_the_peak_counts_what_was_held_and_not_what_the_parent_held() -> None:
    block = np.ones(BLOCK_BYTES, np.uint8)
    assert peak_memory_bytes() >= len(block)
    printed = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    begun, before, after = map(int, printed.split())
    assert 1_000_000 < begun < len(block) // 2 <= before
    if sys.platform == "linux":  # It alone lets a process forget its peak.
        assert after < before - len(block) // 4
