"""Signals that stop an extraction: SIGINT and SIGTERM become one error that says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from advl_pipeline.errors import Interrupted


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C inside the block into `Interrupted`. Handlers are set in the main thread only."""
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _raise_interrupted) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted("Ctrl-C") from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    del frame
    raise _interrupted(signal.Signals(number).name)


def _interrupted(reason: str) -> Interrupted:
    return Interrupted(
        f"The extraction was stopped by {reason}.",
        why="every committed shard is kept",
        next_command="give the same command again: it resumes",
    )
