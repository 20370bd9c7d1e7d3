"""Students by name. A new student is one file and one line here, or an entry point `advl.students`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_pipeline.errors import ConfigError, suggest_names

if TYPE_CHECKING:
    from advl_pipeline.students.interface import Student

BUILDERS: dict[str, str] = {
    **dict.fromkeys(("scenes-small", "scenes-small-lm"), "advl_pipeline.students.scenes_small:build"),
    "scenes-uniter": "advl_pipeline.students.scenes_uniter:build",
    "scenes-smolvlm": "advl_pipeline.students.scenes_smolvlm:build",
    "scenes-vilt": "advl_pipeline.students.scenes_vilt:build",
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
    **dict.fromkeys(("clip-vil", "clip-vil-tiny"), "advl_pipeline.students.clip_vil:build"),
}
"""Name -> "module:function". The function takes (name, weights, overrides) and returns a `Student`."""

GIVEN = "given:"
GIVEN_BUILDER = "advl_pipeline.training.given_features:build"
"""`given:NAME` is the student NAME with its teachers' features as inputs: a measuring device, in no list."""

Builder = Callable[[str, "Path | None", Mapping[str, Any]], "Student"]


def student_names() -> list[str]:
    """Return the names of all students, plug-ins included, in order."""
    return sorted({*BUILDERS, *(point.name for point in entry_points(group="advl.students"))})


def build_student(name: str, *, weights: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Student:
    """Build a student by name.

    Args:
        name: one of `student_names()`, or `given:` and one of them.
        weights: a folder that `save_student` wrote, or a checkpoint in the student's own format; None for random
            weights.
        overrides: architecture settings that differ from the student's defaults, such as the number of layers.

    Raises:
        ConfigError: unknown name or setting. WeightsUnavailable: the weights are not there.
    """
    place = GIVEN_BUILDER if name.startswith(GIVEN) else BUILDERS.get(name)
    if place is not None:
        module, _, function = place.partition(":")
        builder: Builder = getattr(importlib.import_module(module), function)
    else:
        points = {point.name: point for point in entry_points(group="advl.students")}
        if name not in points:
            raise ConfigError(f"Unknown student {name!r}.", why=suggest_names(name, student_names()))
        builder = points[name].load()
    return builder(name, weights, overrides or {})
