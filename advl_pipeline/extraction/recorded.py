"""The extraction that made a cache, from the cache's own record: what it names is known, where that lies is not.

A cache may come from anyone. Paths of its record are shown, and never opened or written to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import build_config, command_words, options_without
from advl_pipeline.datasets.roots import HUB_PREFIX, is_own_data
from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.extraction.config import ExtractConfig, RecomputeOptions


def recorded_extraction(settings: Mapping[str, Any], config: RecomputeOptions, *, command: str) -> ExtractConfig:
    """Return the extraction that a cache's record describes, with the paths that the user typed.

    Args:
        settings: options of the extraction, from the record.
        config: of the command that encodes units again; what it gives stands in place of the record's.
        command: its words, such as "cache repair".

    Raises:
        ConfigError: the record names a path that was not typed, or options that cannot be used.
    """
    typed = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    given = {name: value for name, value in typed.items() if value is not None and value != ()}
    recorded = options_without(ExtractConfig, settings, "none")
    recorded.pop("compression", None)  # Of version 0.2; caches that were compressed are refused before.
    missing = {name: value for name, value in _paths(recorded).items() if name not in given}
    if missing:
        words = command_words(type(config), {**given, **missing, "cache": None})
        raise ConfigError(
            "The cache's record names paths, and only paths that you give are opened.",
            where=f"{config.cache}/records/provenance.json",
            why="; ".join(f"{name}: {value}" for name, value in missing.items()),
            next_command=advise(["advl", *command.split(), str(config.cache), *words]),
        )
    known = {field.name for field in dataclasses.fields(ExtractConfig)} - {"seed"}
    where = f"{config.cache}/records/provenance.json"
    return build_config(ExtractConfig, recorded, {name: given[name] for name in known & given.keys()}, where=where)


def _paths(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a record that name a path of this machine, by the option that gives it anew."""
    found = {name: recorded[name] for name in ("weights", "data_root", "ids") if recorded.get(name)}
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
