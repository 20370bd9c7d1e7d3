"""Provenance: how a cache came to be. Recorded beside the identity, no part of it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from advl_pipeline.cache.store import Readable, read_json
from advl_pipeline.locations import Location

PROVENANCE_FILE = "records/provenance.json"

IMPORTED = "import:"
"""Begins the name of a teacher whose features were imported."""

_IMPORT_OPTIONS = ("dataset", "split", "dtype", "data_root")
_EXTRACT_OPTIONS = (
    *("teacher", "dataset", "split", "modality", "image_tokens", "grid_side", "dtype"),
    *("select_tokens", "mixed_precision", "text_style", "text_units", "shard_rows", "on_error", "weights"),
    *("data_root", "shots", "seed", "ids"),
)
_UNSAID = {
    "grid_side": 12,
    "seed": [0],
    "text_units": "question",
    "ids": [],
    "shard_rows": 32768,
    "on_error": "fail",
}
"""Defaults that a command need not say."""

_LIBRARIES = ("advl-pipeline", "numpy", "torch", "transformers", "timm", "zarr")


def describe_run(config: Mapping[str, Any], *, device: str) -> dict[str, Any]:
    """Return library versions, device and the configuration of the run; no times, so that equal runs are equal."""
    return {
        "config": dict(config),
        "device": device,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def extract_command(store: Readable, *, renew: bool = False) -> str:
    """Return the command that makes, resumes or (`renew`: after removing what is there) replaces a cache."""
    name = str(store.location)
    try:
        words = _command_words(read_json(store, PROVENANCE_FILE)["config"])
    except (KeyError, TypeError, AttributeError):
        words = ["advl", "extract", "--teacher", "NAME", "--dataset", "NAME", "--split", "SPLIT"]
    command = shlex.join([*words, "--output", name])
    return f"{_removal(name)} && {command}" if renew else command


def renew_command(config: Mapping[str, Any], location: Location) -> str:
    """Return the command that replaces a cache by one made with these options."""
    return f"{_removal(str(location))} && {shlex.join([*_command_words(config), '--output', str(location)])}"


def fresh_command(config: Mapping[str, Any], *, output: str = "") -> str:
    """Return the command that makes a cache with these options; no other one is touched.

    Args:
        output: where, if not where such a cache lies by default.
    """
    return shlex.join([*_command_words(config), *(["--output", output] if output else [])])


def _removal(name: str) -> str:
    return shlex.join(["advl", "cache", "prune", name, "--all"])


def _command_words(config: Mapping[str, Any]) -> list[str]:
    is_import = str(config["teacher"]).startswith(IMPORTED)
    words = ["advl", "extract"]
    if is_import:
        words = ["advl", "cache", "import", "SOURCE", "--name", str(config["teacher"]).removeprefix(IMPORTED)]
    for key in _IMPORT_OPTIONS if is_import else _EXTRACT_OPTIONS:
        value = config.get(key)
        if value is not None and value != _UNSAID.get(key):
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += ["--" + key.replace("_", "-"), str(item)]
    return words


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
