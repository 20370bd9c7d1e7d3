"""A place has one writer at a time, and a writer that died holds nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from advl_pipeline.errors import InUse
from advl_pipeline.process_lock import process_lock

HOLDER = """
import sys
from pathlib import Path
from advl_pipeline.process_lock import process_lock
with process_lock(Path(sys.argv[1]), "this run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def test_what_the_lock_file_holds_is_only_told_never_needed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with start_holder(path):
        path.write_text("not json", encoding="utf-8")
        with pytest.raises(InUse, match="only just begun"), process_lock(path, "this run"):
            raise AssertionError
