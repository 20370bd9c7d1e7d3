"""Build a named student: a preset, then a saved folder's settings, then overrides; weights from a folder or a file.

A student class built here has `config_class`, `presets` (name -> settings) and `rules` (how its original
checkpoints' names become its own). What lies beside its weights is its tokenizer, or what `settings_beside` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from advl_pipeline.configuration import build_config
from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.students.checkpoints import KeyRules, LoadReport, load_file, load_into, read_checkpoint
from advl_pipeline.students.interface import Student
from advl_pipeline.students.saved import DESCRIPTION_FILE, load_student_weights
from advl_pipeline.students.weight_files import tokenizer_folder


def builder(student_class: Any) -> Callable[[str, Path | None, Mapping[str, Any]], Student]:
    """Return the function that the registry calls for the names in `student_class.presets`."""

    def build(name: str, weights: Path | None, overrides: Mapping[str, Any]) -> Student:
        preset = student_class.presets[name]
        is_saved = weights is not None and (weights / DESCRIPTION_FILE).is_file()
        saved, load = (
            load_student_weights(weights, name, load_original) if weights is not None and is_saved else ({}, None)
        )
        read_beside = getattr(student_class, "settings_beside", _tokenizer_beside)
        own = {} if weights is None else read_beside(weights)
        config = build_config(student_class.config_class, preset, saved, own, overrides, where=str(weights or name))
        student: Student = student_class(name, config)
        if load is not None:
            load(student)
        elif weights is not None:
            load_original(student, weights)
        return student

    return build


def _tokenizer_beside(weights: Path) -> dict[str, Any]:
    folder = tokenizer_folder(weights)
    return {} if folder is None else {"tokenizer": str(folder)}


def load_original(student: Student, path: Path) -> LoadReport:
    """Fill a student from an original checkpoint.

    Keys of heads and of pretraining objectives are set aside; keys that nothing explains are reported.

    Raises:
        ConfigError: the file does not fill the student; the keys are named.
    """
    rules: KeyRules = getattr(student, "rules", KeyRules())
    report = load_file(student, path, rules)
    if report.missing or report.reinitialised:
        names = [*report.missing, *report.reinitialised]
        raise ConfigError(
            f"The checkpoint does not fill {student.name}: {len(names)} parameters are missing or of another shape.",
            where=str(path),
            why=", ".join(names[:5]) + (", ..." if len(names) > 5 else ""),
            next_command=advise(["advl", "students", "load-check", student.name, str(path)]),
        )
    return report


def load_head(head: nn.Module, path: Path, rules: KeyRules) -> LoadReport:
    """Fill a task's head from an original checkpoint, where it has one with as many classes.

    What the file lacks, or has with another number of classes, keeps its fresh values; the report says so (`missing`,
    `reinitialised`).
    """
    state, half = read_checkpoint(path)
    return load_into(head, state, rules, source=path.name, num_half_precision=half)
