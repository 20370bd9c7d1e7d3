"""Make the n-th call of this process that changes a folder fail as on a full disk, or kill the process there."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.truncate")


@dataclass
class Watched:
    """Calls that changed a folder; the one of number `stop_at` is stopped."""

    folder: str
    stop_at: int
    kills: bool
    num_calls: int = 0

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a call that changes the folder, and stop it if it is the wanted one."""
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (is_write or event in _CHANGES) or not str(arguments[0]).startswith(self.folder):
            return
        self.num_calls += 1
        if self.num_calls != self.stop_at:
            return
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_watched: list[Watched] = []


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    for watched in _watched:
        watched.see(event, arguments)


@contextmanager
def stopping(folder: Path, *, call: int, kills: bool = False) -> Iterator[Watched]:
    """Stop a call that changes a folder: number `call` of those in the block, which may have fewer."""
    if not hasattr(sys, "_sees_calls"):
        # A hook stays until the process ends.
        sys.addaudithook(_see)
        sys._sees_calls = True  # type: ignore[attr-defined]
    _watched.append(watched := Watched(folder=str(folder), stop_at=call, kills=kills))
    try:
        yield watched
    finally:
        _watched.remove(watched)
