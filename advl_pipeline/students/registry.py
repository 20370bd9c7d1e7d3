"""The registry of students: list, describe and build them by name, and check checkpoints against them.

A new student requires one file and the facts of its family (`data/students.toml`), or an entry point
`advl.students` and a `students.toml` in a plug-in's data.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from advl_pipeline.base.compute import drawing
from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.base.errors import advise, unknown_name
from advl_pipeline.base.packages import entry_points, load_plugin, read_tables
from advl_pipeline.students.presets import STUDENTS, family_of, size_of

if TYPE_CHECKING:
    from advl_pipeline.students.checkpoints import LoadReport
    from advl_pipeline.students.interface import Student


Builder = Callable[[str, "Path | None", Mapping[str, Any]], "Student"]


def student_names() -> list[str]:
    """Return the sorted names of all students, plug-ins included."""
    return sorted({*STUDENTS, *(point.name for point in entry_points(group="advl.students"))})


def require_student(name: str) -> None:
    """Refuse a name that is not in `student_names()`, before anything is loaded.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in student_names():
        raise unknown_name(
            f"Unknown student {name!r}.", name, student_names(), next_command=advise(["advl", "students", "list"])
        )


def build_student(name: str, *, weights: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Student:
    """Build a student by name.

    Args:
        name: one of `student_names()`.
        weights: a folder written by `save_student`, or a checkpoint in the student's own format; None for random
            weights.
        overrides: architecture settings that differ from the student's defaults, such as the number of layers.

    Raises:
        ConfigError: the name or a setting is unknown. WeightsUnavailable: the weights are missing.
    """
    require_student(name)
    if name in STUDENTS:
        from advl_pipeline.students.saved import builder

        build: Builder = builder(family_class(name))
    else:
        point = next(point for point in entry_points(group="advl.students") if point.name == name)
        build = load_plugin(point, "student")
    with drawing():
        return build(name, weights, overrides or {})


def family_class(name: str) -> Any:
    """Return the class of a student of `STUDENTS`."""
    module, _, family = STUDENTS[name].partition(":")
    return getattr(importlib.import_module(f"advl_pipeline.students.{module}"), family)


def require_supported(name: str, folder: Path) -> None:
    """Refuse published weights that a student cannot be built of, by the descriptions beside them.

    Args:
        folder: descriptions of a repository, with or without its weights.

    Raises:
        ConfigError: the architecture is not supported.
    """
    if name not in STUDENTS:
        return
    import torch

    settings = family_class(name).settings_beside(folder)
    if "architecture" in settings:
        # Building on this device takes no memory.
        with torch.device("meta"):
            build_student(name, overrides=settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentFamily:
    """What is known of a family of students, in words (`data/students.toml`).

    `proof` says how it was tested against `reference`, `unproven` what was not tested. `largest` is the largest
    absolute difference from the reference in fp32 on a CPU.
    """

    title: str = "plug-in"
    visual: str = "visual input of its own"
    weights: str = ""
    tasks: str = ""
    reference: str = ""
    proof: str = ""
    unproven: str = ""
    largest: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSummary(StudentFamily):
    """An entry of the list of students."""

    name: str
    family: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentDetails(StudentSummary):
    """A student that was built with random weights; `config` is its architecture, as plain JSON types."""

    num_parameters: int
    hidden_size: int
    pooled_size: int
    config: Mapping[str, Any]


def families() -> dict[str, StudentFamily]:
    """Return what is known of each family, by its name."""
    known = {field.name for field in fields(StudentFamily)}
    return {
        family: StudentFamily(**{key: facts[key] for key in known & facts.keys()})
        for family, facts in read_tables("students.toml").items()
    }


def list_students() -> list[StudentSummary]:
    """Return every student, plug-ins included, without building any."""
    known = families()
    return [_summary(name, known) for name in student_names()]


def _summary(name: str, known: Mapping[str, StudentFamily]) -> StudentSummary:
    family = family_of(name)
    return StudentSummary(name=name, family=family, **asdict(known.get(family, StudentFamily())))


def show_student(name: str, *, tokenizer: str | None = None) -> StudentDetails:
    """Return the architecture, number of parameters and verified facts of a student.

    Args:
        tokenizer: folder or name of a tokenizer to use if the student's own is not available.

    Raises:
        ConfigError: the name is unknown. WeightsUnavailable: the tokenizer is not available, and the student's
            architecture needs its padding token.
    """
    student = build_student(name, overrides={} if tokenizer is None else {"tokenizer": tokenizer})
    return StudentDetails(
        **asdict(_summary(name, families())),
        num_parameters=sum(parameter.numel() for parameter in student.parameters()),
        hidden_size=student.hidden_size,
        pooled_size=student.pooled_size,
        config=config_to_dict(student.config),
    )


def check_checkpoint(name: str, checkpoint: Path, *, tokenizer: str | None = None) -> LoadReport:
    """Load a checkpoint into a student with random weights and report what happened to every key.

    Args:
        checkpoint: file or folder; for a repository on the hub, the path from `weight_files.located`.
        tokenizer: as for `show_student`.

    Raises:
        ConfigError: the name is unknown, or no key fits. WeightsUnavailable: the file is missing or damaged.
    """
    require_student(name)
    settings: dict[str, Any] = {} if tokenizer is None else {"tokenizer": tokenizer}
    if name in STUDENTS:
        # A chat model's architecture is stored with its weights, and so are many tokenizers.
        settings = family_class(name).settings_beside(checkpoint) | settings
    from advl_pipeline.students.saved import load_published

    return load_published(build_student(name, overrides=settings), checkpoint)


_IN_METERS_ORDER = frozenset({"meter", "bridgetower"})
"""Families whose published heads use METER's order of the SNLI-VE classes; all others use UNITER's."""


def label_order_of(student: str) -> Literal["uniter", "meter"]:
    """Return the order of SNLI-VE's classes for a student, which is the order of its published heads."""
    return "meter" if family_of(student) in _IN_METERS_ORDER else "uniter"


def student_table() -> str:
    """Return the Markdown table of families in docs/students.md."""
    names: dict[str, list[str]] = {}
    for name in student_names():
        if size_of(name) != "tiny" and family_of(name) in families():
            names.setdefault(family_of(name), []).append(f"`{name}`")
    rows = ["| student | visual input | weights | tasks | tested against, and how | largest difference |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for family, facts in families().items():
        largest = "-" if facts.largest is None else f"{facts.largest:.1e}"
        proof = f"{facts.reference}: {facts.proof}. Not tested: {facts.unproven}"
        cells = (", ".join(names[family]), facts.visual, facts.weights, facts.tasks, proof, largest)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
