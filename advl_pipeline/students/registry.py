"""Students by name. A new student is one file and one line here, or an entry point `advl.students`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_pipeline.errors import (
    ConfigError,
    advise,
    suggest_names,
)
from advl_pipeline.packages import entry_points

if TYPE_CHECKING:
    from advl_pipeline.students.interface import Student

BUILDERS: dict[str, str] = {
    **{
        f"{family}-{size}": "advl_pipeline.students.uniter:build"
        for family in ("uniter", "villa")
        for size in ("base", "large", "tiny")
    },
    **{f"vl-bert-{size}": "advl_pipeline.students.vl_bert:build" for size in ("base", "large", "tiny")},
    **dict.fromkeys(("visualbert", "visualbert-vcr", "visualbert-tiny"), "advl_pipeline.students.visualbert:build"),
    **dict.fromkeys(("lxmert", "lxmert-tiny"), "advl_pipeline.students.lxmert:build"),
    **{
        f"{family}{size}": f"advl_pipeline.students.{family}:build"
        for family in ("meter", "vilt", "bridgetower", "modernvbert")
        for size in ("", "-tiny")
    },
    **{f"smolvlm-{size}": "advl_pipeline.students.smolvlm:build" for size in ("256m", "500m", "2.2b", "tiny")},
    **{f"qwen3-vl-{size}": "advl_pipeline.students.qwen_vl:build" for size in ("2b", "4b", "8b", "tiny")},
    **dict.fromkeys(("clip-vil", "clip-vil-tiny"), "advl_pipeline.students.clip_vil:build"),
}
"""Name -> "module:function". The function takes (name, weights, overrides) and returns a `Student`."""

DOOR = ":"
"""Ends the name of a plug-in that builds students around others, as `given:` does `given:NAME`; it is in no list."""

Builder = Callable[[str, "Path | None", Mapping[str, Any]], "Student"]


def student_names() -> list[str]:
    """Return the names of all students, plug-ins included, in order."""
    plugins = (point.name for point in entry_points(group="advl.students"))
    return sorted({*BUILDERS, *(name for name in plugins if not name.endswith(DOOR))})


def door_of(name: str) -> str:
    """Return the door that a student's name opens, such as `given:`; "" for a plain name."""
    door, colon, _ = name.partition(DOOR)
    return door + colon if colon else ""


def require_student(name: str) -> None:
    """Refuse a name that is none of `student_names()`, before anything is loaded.

    Raises:
        ConfigError: as said.
    """
    door = door_of(name)
    doors = {point.name for point in entry_points(group="advl.students")} if door else set()
    if (door not in doors) if door else (name not in student_names()):
        raise ConfigError(
            f"Unknown student {name!r}.",
            why=suggest_names(name, student_names()),
            next_command=advise(["advl", "students", "list"]),
        )


def build_student(name: str, *, weights: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Student:
    """Build a student by name.

    Args:
        name: one of `student_names()`, or a door and one of them.
        weights: a folder that `save_student` wrote, or a checkpoint in the student's own format; None for random
            weights.
        overrides: architecture settings that differ from the student's defaults, such as the number of layers.

    Raises:
        ConfigError: unknown name or setting. WeightsUnavailable: the weights are not there.
    """
    require_student(name)
    if name in BUILDERS:
        module, _, function = BUILDERS[name].partition(":")
        builder: Builder = getattr(importlib.import_module(module), function)
    else:
        wanted = door_of(name) or name
        (point,) = (point for point in entry_points(group="advl.students") if point.name == wanted)
        builder = point.load()
    return builder(name, weights, overrides or {})
