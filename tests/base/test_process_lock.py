"""A place has one writer at a time, however the one before it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from advl_pipeline.base.errors import InUse
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
