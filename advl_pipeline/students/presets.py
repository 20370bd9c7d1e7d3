"""Names, families, sizes and architectures of the students of this package, read from data files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advl_pipeline.base.packages import read_tables

STUDENTS: dict[str, str] = {
    name: facts["class"]
    for facts in read_tables("students.toml").values()
    if "class" in facts
    for name in facts["names"].split()
}
"""Name -> module of this folder and class, from `data/students.toml`."""

SIZES = ("tiny", "small", "base", "large", "vcr", "256m", "500m", "2.2b", "2b", "4b", "8b")
"""Size suffixes of a family's name; a name without one has the size "base" in recipes."""


def published_presets() -> dict[str, dict[str, Any]]:
    """Return name -> settings of all students of `STUDENTS`, from `data/architectures.toml`."""
    tables = read_tables("architectures.toml")
    return {name: merged(tables.get(family_of(name), {}), tables.get(name, {})) for name in STUDENTS}


def merged(usual: Mapping[str, Any], particular: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables recursively; the second takes precedence."""
    inside = {
        key: merged(usual[key], value)
        for key, value in particular.items()
        if isinstance(value, Mapping) and isinstance(usual.get(key), Mapping)
    }
    return {**usual, **particular, **inside}


def library_config(kind: Any, config: Any, **more: Any) -> Any:
    """Return a transformers configuration of a student's architecture (`data/library_names.toml`).

    Args:
        kind: the configuration class of transformers.
        config: the student's configuration.
        more: settings by transformers' names, nested configurations included.
    """

    def valued(names: Mapping[str, Any]) -> dict[str, Any]:
        return {key: valued(name) if isinstance(name, Mapping) else value_of(name) for key, name in names.items()}

    def value_of(name: Any) -> Any:
        return getattr(config, name, name) if isinstance(name, str) else name

    return kind(**merged(valued(read_tables("library_names.toml")[kind.__name__]), more))


def family_of(name: str) -> str:
    """Return a student's name without its size."""
    stem, _, size = name.rpartition("-")
    return stem if stem and size in SIZES else name


def family_facts(name: str) -> Mapping[str, Any]:
    """Return the facts of a student's family (`data/students.toml`); empty for a plug-in without them."""
    facts: Mapping[str, Any] = read_tables("students.toml").get(family_of(name), {})
    return facts


def size_of(name: str) -> str:
    """Return the size suffix of a student's name, "base" without one."""
    return name[len(family_of(name)) + 1 :] or "base"
