"""The extraction that made a cache, from the cache's own record: what it names is known, where that lies is not.

A cache may come from anyone. Paths of its record are shown, and never opened or written to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from advl_pipeline.cache.provenance import IMPORTED
from advl_pipeline.configuration import build_config, command_words, options_without
from advl_pipeline.datasets.roots import recorded_paths, refused_paths
from advl_pipeline.extraction.config import ExtractConfig, ImportedExtraction, RecomputeOptions
from advl_pipeline.extraction.imported import open_tower
from advl_pipeline.extraction.part import Selection, open_part
from advl_pipeline.extraction.run import open_inputs
from advl_pipeline.teachers.interface import Teacher


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
    made_as: type[ExtractConfig] = ExtractConfig
    named = recorded_paths(recorded)
    if str(settings.get("teacher", "")).startswith(IMPORTED):
        made_as, named = ImportedExtraction, {"source": "FILE", **named}
    missing = {name: value for name, value in named.items() if name not in given}
    if missing:
        words = command_words(type(config), {**given, **missing, "cache": None})
        raise refused_paths(config.cache, missing, ["advl", *command.split(), str(config.cache), *words])
    known = {field.name for field in dataclasses.fields(made_as)} - {"seed"}
    where = f"{config.cache}/records/provenance.json"
    return build_config(made_as, recorded, {name: given[name] for name in known & given.keys()}, where=where)


def open_recorded(config: ExtractConfig, stack: ExitStack) -> tuple[Teacher, Selection]:
    """Open what a recorded extraction encodes, and with what: a teacher, or the files that its features came from.

    Args:
        stack: closes the files.
    """
    if not isinstance(config, ImportedExtraction):
        return open_inputs(config)
    dataset = open_part(config)
    return Teacher(name=config.teacher, image=open_tower(config, dataset.image_units(), stack)), dataset
