"""Provenance: how a cache came to be. Recorded beside the identity, no part of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from advl_pipeline.cache.store import Readable, read_json
from advl_pipeline.errors import Advice, advise
from advl_pipeline.locations import Location
from advl_pipeline.packages import installed_versions

PROVENANCE_FILE = "records/provenance.json"

IMPORTED = "import:"
"""Begins the name of a teacher whose features were imported."""

_IMPORT_OPTIONS = "dataset split ground_truth_regions region_naming region_split dtype data_root".split()
_EXTRACT_OPTIONS = (
    *("teacher", "dataset", "split", "modality", "image_tokens", "grid_side", "dtype"),
    *(
        "select_tokens",
        "select_texts",
        "mixed_precision",
        "text_style",
        "text_units",
        "shard_rows",
        "on_error",
        "weights",
    ),
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
        "libraries": installed_versions(_LIBRARIES, absent="absent"),
    }


def extract_command(store: Readable, *, renew: bool = False) -> Advice:
    """Return the command that makes, resumes or (`renew`: after removing what is there) replaces a cache."""
    name = str(store.location)
    try:
        words = _command_words(read_json(store, PROVENANCE_FILE)["config"])
    except (KeyError, TypeError, AttributeError):
        words = ["advl", "extract", "--teacher", "NAME", "--dataset", "NAME", "--split", "SPLIT"]
    command = [*words, "--output", name]
    return advise(_removal(name), command) if renew else advise(command)


def renew_command(config: Mapping[str, Any], location: Location, *, note: str = "") -> Advice:
    """Return the command that replaces a cache by one made with these options."""
    return advise(_removal(str(location)), [*_command_words(config), "--output", str(location)], note=note)


def fresh_command(config: Mapping[str, Any], *, output: str = "", note: str = "") -> Advice:
    """Return the command that makes a cache with these options; no other one is touched.

    Args:
        output: where, if not where such a cache lies by default.
    """
    return advise([*_command_words(config), *(["--output", output] if output else [])], note=note)


def _removal(name: str) -> list[str]:
    return ["advl", "cache", "prune", name, "--all"]


def _command_words(config: Mapping[str, Any]) -> list[str]:
    is_import = str(config["teacher"]).startswith(IMPORTED)
    words = ["advl", "extract"]
    if is_import:
        name = str(config["teacher"]).removeprefix(IMPORTED)
        words = ["advl", "cache", "import", str(config.get("source", "SOURCE")), "--name", name]
    for key in _IMPORT_OPTIONS if is_import else _EXTRACT_OPTIONS:
        value = config.get(key)
        if value is not None and value != _UNSAID.get(key):
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += ["--" + key.replace("_", "-"), str(item)]
    return words
