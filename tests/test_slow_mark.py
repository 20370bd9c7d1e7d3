"""A test that is slow says so, or the run fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from slow_mark import SlowMark

def pytest_configure(config):
    config.pluginmanager.register(SlowMark(seconds=0.2))
"""

TESTS = """
import time
import pytest

def work():
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass

def test_unmarked():
    work()

@pytest.mark.slow
def test_marked():
    work()

def test_waiting():
    time.sleep(0.5)
"""


def test_a_test_that_is_slow_and_not_marked_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other plug-ins take seconds to import.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_work.py").write_text(TESTS)
    support = Path(__file__).parent / "support"
    settings = ["-o", f"pythonpath={support}", "-o", "markers=slow"]
    command = [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed" in done.stdout
    assert "FAILED test_work.py::test_unmarked - Failed: it takes" in done.stdout
