"""The machine that figures are of, in a line."""

from __future__ import annotations

import datetime
import os
import platform


def describe_machine(*, quick: bool) -> str:
    """Return the day, the machine, its load now, and whether the measurement is a quick one."""
    return (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f} at its beginning, {'quick' if quick else 'full'}"
    )
