"""What the mark `slow` promises: `make quick DIR=cache` runs what is not marked, in a minute of two cores.

A test without the mark takes at most ten seconds of that minute, and all of one folder the minute together. Processor
time is compared, because a busy machine changes it little.
"""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

PROPERTY = "folder and processor time"
"""Of a test's report, which pytest-xdist hands from the process that runs it to the one that counts."""


def processor_seconds() -> float:
    """Return the processor time of this process and of the processes that it started and waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(of.ru_utime + of.ru_stime for of in used)


class SlowMark:
    """A pytest plug-in: fail what takes more processor time than it may without the mark.

    Args:
        tests: the folder whose folders are held.
        seconds: of one test; what its fixtures take is shared by others.
        folder_seconds: of the tests of one folder with their fixtures.
    """

    def __init__(self, *, tests: Path, seconds: float, folder_seconds: float) -> None:
        self.tests = tests
        self.seconds = seconds
        self.folder_seconds = folder_seconds
        self._began = 0.0
        self._used: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def pytest_runtest_logstart(self) -> None:
        """Note when a test begins to set up its fixtures."""
        self._began = processor_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Run a test, and fail it if it takes too long."""
        began = processor_seconds()
        yield
        used = processor_seconds() - began
        if used > self.seconds and _is_quick(item):
            pytest.fail(
                f"it takes {used:.0f} s of processor time, at most {self.seconds:g} without the mark `slow`: "
                "make it cheaper, or mark it",
                pytrace=False,
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write the folder of a test and its time into its report."""
        report = yield
        inside = item.path.relative_to(self.tests).parts
        # Fixtures of the session are torn down after the last test: that time is not of its folder.
        if report.when == "call" and len(inside) > 1 and _is_quick(item):
            report.user_properties.append((PROPERTY, (inside[0], processor_seconds() - self._began)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the time of a test for its folder."""
        for name, value in report.user_properties:
            if name == PROPERTY:
                folder, seconds = value
                self._used[folder][report.nodeid] = seconds

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if a folder takes too long."""
        if self._over():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which folders take too long, and by which tests."""
        for folder, used in self._over().items():
            terminalreporter.section(f"{folder} is not quick", red=True)
            terminalreporter.line(
                f"The tests of {folder} without the mark `slow` take {sum(used.values()):.0f} s of processor time "
                f"together, at most {self.folder_seconds:g}: make some cheaper, or mark them."
            )
            for test in sorted(used, key=lambda test: -used[test])[:5]:
                terminalreporter.line(f"{used[test]:6.1f} s  {test}")

    def _over(self) -> dict[str, dict[str, float]]:
        return {folder: used for folder, used in self._used.items() if sum(used.values()) > self.folder_seconds}


def _is_quick(item: pytest.Item) -> bool:
    return not any(item.get_closest_marker(name) for name in ("slow", "cluster"))
