"""What the mark `slow` promises: a test without it takes at most ten seconds of two cores.

`make quick` runs what is not marked. Processor time is compared, because a busy machine changes it little.
"""

from __future__ import annotations

import resource
from collections.abc import Generator

import pytest


def processor_seconds() -> float:
    """Return the processor time of this process and of the processes that it started and waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(of.ru_utime + of.ru_stime for of in used)


class SlowMark:
    """A pytest plug-in: fail a test without the mark that takes more processor time than it may."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Run a test; what its fixtures take is shared by others."""
        began = processor_seconds()
        yield
        used = processor_seconds() - began
        if used > self.seconds and item.get_closest_marker("slow") is None:
            pytest.fail(
                f"it takes {used:.0f} s of processor time, at most {self.seconds:g} without the mark `slow`: "
                "make it cheaper, or mark it",
                pytrace=False,
            )
