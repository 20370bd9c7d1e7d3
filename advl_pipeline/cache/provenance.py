"""Provenance: how a cache came to be. Recorded beside the identity, no part of it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from advl_pipeline.cache.files import read_json
from advl_pipeline.cache.records import PROVENANCE_FILE
from advl_pipeline.locations import Location

_LIBRARIES = ("advl-pipeline", "numpy", "torch", "transformers", "timm", "zarr")


def describe_run(config: Mapping[str, Any], *, device: str) -> dict[str, Any]:
    """Return library versions, device and the configuration of the run; no times, so that equal runs are equal."""
    return {
        "config": dict(config),
        "device": device,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def extract_command(root: Path, *, location: Location | None = None, renew: bool = False) -> str:
    """Return the command that makes, resumes or (`renew`) replaces a cache.

    `root` is where its metadata can be read, `location` what the user calls it if that is not the same.
    """
    name = str(location or root)
    try:
        config = read_json(root, PROVENANCE_FILE)["config"]
        words = ["advl", "extract"]
        for key in ("teacher", "dataset", "split", "modality", "image_tokens", "dtype", "weights", "data_root"):
            if config.get(key) is not None:
                words += ["--" + key.replace("_", "-"), str(config[key])]
    except (KeyError, TypeError, AttributeError):
        words = ["advl", "extract", "--teacher", "NAME", "--dataset", "NAME", "--split", "SPLIT"]
    command = shlex.join([*words, "--output", name])
    return f"{shlex.join(['advl', 'cache', 'prune', name, '--all'])} && {command}" if renew else command


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
