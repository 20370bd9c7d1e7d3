"""The paths that a cache's record names: shown, and never opened unless the user typed them.

A cache may come from anyone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.roots import HUB_PREFIX, is_own_data
from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.locations import Location


def refused_paths(cache: Location, paths: Mapping[str, Any], command: Sequence[str]) -> ConfigError:
    """Return the refusal to open paths that a cache's record names and nobody typed.

    Args:
        cache: where it lies.
        paths: option -> the path.
        command: what gives them.
    """
    return ConfigError(
        "The cache's record names paths, and only paths that you give are opened.",
        where=f"{cache}/records/provenance.json",
        why="; ".join(f"{name}: {path}" for name, path in paths.items()),
        next_command=advise(command),
    )


def recorded_paths(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a record that name a path of this machine, by the option that gives it anew."""
    named = ("weights", "data_root", "ids", "source", "ground_truth_regions")
    found = {name: recorded[name] for name in named if recorded.get(name)}
    dataset, teacher = str(recorded.get("dataset", "")), str(recorded.get("teacher", ""))
    # What the hub calls ORG/NAME, the readers of its files take for a folder where there is one.
    if is_own_data(dataset) and (not dataset.startswith(HUB_PREFIX) or _is_there(dataset.removeprefix(HUB_PREFIX))):
        found["dataset"] = dataset
    inner = teacher.removeprefix("random:").removeprefix(HUB_PREFIX)
    if inner != teacher and _is_there(inner):
        found.setdefault("weights", inner)
    return found


def _is_there(name: str) -> bool:
    with suppress(OSError):
        return Path(name).exists()
    return False
