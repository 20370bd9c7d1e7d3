"""Commands as another user: a process of root gives up its rights; any other user closes a folder for itself."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from commands import completed

from advl_cli.main import COMMANDS

NOBODY = 65534
CLOSED_MODE = 0o700 if os.getuid() == 0 else 0
"""Mode of a folder that the commands may not enter."""


def run_as_another_user(folder: Path, commands: Mapping[str, str]) -> None:
    """Run commands in a folder, and print their exit codes and messages; for `start`."""
    for module, _ in COMMANDS.values():
        importlib.import_module(f"advl_cli.{module}")  # The other user may be unable to read the installed packages.
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    os.environ |= {"HOME": f"{folder}/open", "ADVL_DATA": f"{folder}/open", "ADVL_INDEX": f"{folder}/open/index"}
    ended = {name: completed(*words.split(), folder=folder) for name, words in commands.items()}
    print(json.dumps({name: [done.returncode, done.stderr] for name, done in ended.items()}))
