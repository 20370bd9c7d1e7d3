"""A run that records its process id and never ends."""

from __future__ import annotations

import os
import time
from pathlib import Path


def wait_in(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)
