"""A Python that has what the project needs, and not the project."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], str]:
    """Return what runs code in a folder, in a virtual environment of third-party packages alone."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched; .pth files in it, by which a project is installed, are not read.
    (packages / "third.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")

    def run(code: str, folder: Path) -> str:
        refused = "import importlib.util\nassert importlib.util.find_spec('advl_pipeline') is None\n"
        done = subprocess.run(
            [home / "bin" / "python", "-c", refused + code], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert sys.prefix != str(home)
    return run
