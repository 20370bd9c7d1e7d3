"""The packages that the corpus is made from: those of the extra `demo`."""

from __future__ import annotations

import importlib
from types import ModuleType

from advl_pipeline.errors import DatasetError
from advl_pipeline.packages import install_extra


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
            next_command=install_extra("train", "demo"),
        ) from None
