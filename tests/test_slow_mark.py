"""A test that is slow says so and a folder stays quick, or the run fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from pathlib import Path
from slow_mark import SlowMark

def pytest_configure(config):
    plugin = SlowMark(tests=Path(__file__).parent, seconds=SECONDS, folder_seconds=FOLDER_SECONDS)
    config.pluginmanager.register(plugin)
"""

WORK = """
import time
import pytest

def work(seconds=0.5):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""

TESTS = f"""{WORK}
def test_unmarked():
    work()

@pytest.mark.slow
def test_marked():
    work()

def test_waiting():
    time.sleep(0.5)
"""

MANY = f"""{WORK}
@pytest.fixture
def costly():
    work()

def test_of_a_fixture(costly):
    pass

@pytest.mark.parametrize("number", range(6))
def test_row(number):
    work(0.1 * number)
"""

FEW = f"""{WORK}
def test_unmarked():
    work()

@pytest.mark.slow
def test_marked():
    work(2)

@pytest.fixture(scope="session")
def shared():
    yield
    work(2)

def test_that_is_the_last(shared):
    pass
"""


def ran(
    tests: Path, monkeypatch: pytest.MonkeyPatch, *words: str, seconds: float, folder_seconds: float
) -> subprocess.CompletedProcess[str]:
    # Other plug-ins take seconds to import.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    limits = CONFTEST.replace("FOLDER_SECONDS", str(folder_seconds)).replace("SECONDS", str(seconds))
    (tests / "conftest.py").write_text(limits)
    support = Path(__file__).parent / "support"
    settings = ["-o", f"pythonpath={support}", "-o", "markers=slow", "--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", "--rootdir", str(tests), *settings, *words]
    return subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False)


def test_a_test_that_is_slow_and_not_marked_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_work.py").write_text(TESTS)
    done = ran(tmp_path, monkeypatch, seconds=0.2, folder_seconds=60)
    assert "1 failed, 2 passed" in done.stdout
    assert "FAILED test_work.py::test_unmarked - Failed: it takes" in done.stdout


@pytest.mark.parametrize("words", [(), ("-p", "xdist", "--numprocesses", "2")], ids=["one process", "two"])
def test_a_run_with_a_folder_that_is_not_quick_fails_and_names_its_most_expensive_tests(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, content in (("cache", MANY), ("runs", FEW)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"test_{folder}.py").write_text(content)
    done = ran(tmp_path, monkeypatch, *words, seconds=60, folder_seconds=1.9)
    assert done.returncode == 1
    assert "10 passed" in done.stdout
    assert "runs is not quick" not in done.stdout
    told = done.stdout.partition("cache is not quick")[2]
    assert "at most 1.9: make some cheaper, or mark them." in told
    named = [line.split("::")[1] for line in told.splitlines() if "test_cache.py::" in line]
    assert {*named} == {"test_of_a_fixture", *(f"test_row[{number}]" for number in range(2, 6))}
    assert len(named) == 5
