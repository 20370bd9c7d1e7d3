"""How much memory this process has held at most, since it began or since it was last asked to forget."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"


def forget_peak_memory() -> None:
    """Let the peak begin anew at what is held now, where the kernel can: a process may run many cells of a study."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_FORGET_PEAK, encoding="ascii")


def peak_memory_bytes() -> int:
    """Return the largest resident size since this program began or `forget_peak_memory`, in bytes.

    On Linux from its own status, since `getrusage` of a child process also counts what its parent held at the fork,
    and forgets nothing.
    """
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
