"""Ctrl-C in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from advl_pipeline.runs.run_folder import RunFolder


@contextmanager
def interrupted_at(number: int) -> Iterator[None]:
    """Interrupt the run inside the block when it logs for the `number`-th time."""
    log, calls = RunFolder.log, []

    def stop(self: RunFolder, records: Any) -> None:
        calls.append(records)
        if len(calls) == number:
            raise KeyboardInterrupt
        log(self, records)

    with patch.object(RunFolder, "log", stop):
        yield
