"""Save students as `student.json` (name, architecture, origin) and `model.safetensors`, and build them.

A student is built from such a folder, from a published checkpoint, or with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_tensors

from advl_pipeline.base.atomic import make_folder, write_text
from advl_pipeline.base.configuration import build_config, config_to_dict, json_text
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable, advise
from advl_pipeline.base.locations import read_regular
from advl_pipeline.base.tensors import parameter_digest, save_tensors
from advl_pipeline.runs import names
from advl_pipeline.students.abilities import HasInputFiles, LoadsPublished
from advl_pipeline.students.checkpoints import KeyRules, LoadReport, load_file
from advl_pipeline.students.interface import LoraSettings, Student
from advl_pipeline.students.memory import adapter_tensors, load_adapter, save_adapter_config
from advl_pipeline.students.weight_files import (
    is_on_hub,
    located,
    making_command,
    require_run_files,
    weight_files,
    weights_digest,
)

_PLACES_OF_REGIONS = ("ground_truth_regions", "region_naming", "region_split")
"""Settings of 0.2, which stored the paths of a student's region files here and in `regions`."""

_GONE = {"train_towers": False, "max_new_tokens": 10}
"""Removed settings and the only values accepted for them; a stored student with another value is refused."""

WEIGHTS_FILE = names.STUDENT_WEIGHTS
DESCRIPTION_FILE = names.STUDENT

BASE = "base"
"""Key of a description: the base weights of a student's low-rank updates, and their digest."""


def save_student(
    folder: Path,
    student: Student,
    *,
    origin: Mapping[str, Any],
    updates: LoraSettings | None = None,
    base: Path | None = None,
) -> None:
    """Write the student; the description comes first, so that an incomplete folder is recognised as a student.

    The digest in the description detects weights that are missing or belong to another student.

    Args:
        folder: created when missing.
        student: the encoder; heads and projections are not part of it.
        origin: the student's origin, such as the identity of its pretraining.
        updates: its low-rank updates; only they are written then.
        base: the base weights of the updates: a folder, a file or `hf:ORG/MODEL`.
    """
    make_folder(folder)
    tensors = student.state_dict() if updates is None else adapter_tensors(student)
    belongs: dict[str, Any] = {}
    if updates is not None and base is not None:
        weights = str(base if is_on_hub(base) else base.resolve())
        belongs = {BASE: {"weights": weights, "digest": weights_digest(located(base))}}
        save_adapter_config(folder, updates, base=weights)
    write_description(folder, student, tensors, origin=origin, **belongs)
    if isinstance(student, HasInputFiles):
        student.save_inputs(folder)
    save_tensors(folder / (WEIGHTS_FILE if updates is None else names.ADAPTER_WEIGHTS), tensors)


def write_description(
    folder: Path, student: Student, tensors: Mapping[str, torch.Tensor], *, origin: Mapping[str, Any], **more: Any
) -> None:
    """Write the description that marks a folder as a student; `tensors` is empty for a student not yet made."""
    make_folder(folder)
    description = {
        **more,
        "student": student.name,
        "config": config_to_dict(student.config),
        "parameters_digest": parameter_digest(tensors),
        "origin": dict(origin),
    }
    write_text(folder / DESCRIPTION_FILE, json_text(description, sort_keys=True) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description of a saved student.

    Raises:
        WeightsUnavailable: the folder has no description, or it is damaged.
    """
    file = folder / DESCRIPTION_FILE
    if not file.is_file():
        raise WeightsUnavailable(
            "There is no saved student here.",
            where=str(folder),
            next_command=making_command(folder.name, folder) or "",
        )
    try:
        description: dict[str, Any] = json.loads(read_regular(file))
    except json.JSONDecodeError as error:
        raise WeightsUnavailable(
            "The description of the saved student is damaged.", where=str(file), why=str(error)
        ) from None
    return description


def saved_settings(folder: Path, name: str) -> dict[str, Any]:
    """Return the architecture of a saved student.

    Raises:
        WeightsUnavailable: the folder has no usable description. IdentityMismatch: it contains another student.
    """
    config = _described(folder, name)["config"]
    settings = {
        key: value
        for key, value in config.items()
        if key not in _PLACES_OF_REGIONS and (key, value) not in _GONE.items()
    }
    if settings.get("regions") not in (None, "pixels"):
        settings["regions"] = "detector"
    return settings


def load_weights(student: Student, path: Path) -> None:
    """Load a student's weights from a folder written by `save_student` or from an original checkpoint.

    Raises:
        WeightsUnavailable: weights are missing or damaged. IdentityMismatch: the folder contains another student, the
            weights do not match the description, or files of a finished run changed. ConfigError: a checkpoint does
            not contain all parameters of the student.
    """
    if not (path / DESCRIPTION_FILE).is_file():
        _load_original(student, path)
        return
    require_run_files(path)
    description = _described(path, student.name)
    if BASE in description:
        _load_updates(student, path, description)
        return
    where, remedy = path / WEIGHTS_FILE, "remove the folder and make the student again"
    try:
        student.load_state_dict(load_tensors(where))
    except (FileNotFoundError, SafetensorError) as error:
        raise WeightsUnavailable(
            f"The weights file is {'missing' if isinstance(error, FileNotFoundError) else 'damaged'}.",
            where=str(where),
            why=str(error),
            next_command=remedy,
        ) from None
    except RuntimeError as error:
        raise IdentityMismatch(
            "The weights do not fit the student.",
            where=str(where),
            why=str(error),
            next_command=f"use the version of ADVL that saved it, or {remedy}",
        ) from None
    _require_described(student.state_dict(), description, where)


def _require_described(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any], file: Path) -> None:
    """Refuse tensors whose digest differs from the description's."""
    if parameter_digest(tensors) != description["parameters_digest"]:
        raise IdentityMismatch("The weights file is not the one that student.json describes.", where=str(file))


def _described(folder: Path, name: str) -> dict[str, Any]:
    description = read_description(folder)
    if description["student"] != name:
        other = description["student"]
        raise IdentityMismatch(
            "These weights belong to another student.",
            where=str(folder),
            why=f"asked for {name}, found {other}",
            next_command=f"--student {other}",
        )
    return description


def _load_updates(student: Student, folder: Path, description: Mapping[str, Any]) -> None:
    """Load the base weights of low-rank updates into a student, and merge the updates."""
    base = Path(description[BASE]["weights"])
    source = located(base)
    if not weight_files(source):
        raise WeightsUnavailable(
            "The weights that the run's low-rank updates belong to are not there.",
            where=str(base),
            why=f"{folder} holds the updates alone",
            next_command=f"put the weights back at {base}",
        )
    if weights_digest(source) != description[BASE]["digest"]:
        raise IdentityMismatch(
            "The weights are not those that the run's low-rank updates belong to.", where=str(base)
        )
    load_weights(student, source)
    _require_described(load_adapter(student, folder), description, folder / names.ADAPTER_WEIGHTS)


def load_published(student: Student, path: Path) -> LoadReport:
    """Load a published checkpoint, file or folder, into a student; keys that do not fit raise no error.

    Raises:
        ConfigError: no key fits. WeightsUnavailable: the checkpoint is missing or damaged.
    """
    if isinstance(student, LoadsPublished):
        return student.load_published(path)
    return load_file(student, path, getattr(student, "rules", KeyRules()))


def _load_original(student: Student, path: Path) -> None:
    """Load a checkpoint into a student; ignore its other keys, and refuse missing parameters or other shapes."""
    report = load_published(student, path)
    absent = [*report.missing, *report.reinitialised]
    if absent:
        raise ConfigError(
            f"The checkpoint does not fill {student.name}: {len(absent)} parameters are missing or of another shape.",
            where=str(path),
            why=", ".join(absent[:5]) + (", ..." if len(absent) > 5 else ""),
            next_command=advise(["advl", "students", "load-check", student.name, str(path)]),
        )


def builder(student_class: Any) -> Callable[[str, Path | None, Mapping[str, Any]], Student]:
    """Return the function that builds the students of a class by name.

    Settings are applied in this order: preset, saved folder, files next to the weights, overrides.

    Args:
        student_class: has `config_class` and `presets` (name -> settings), and `rules` if weights are published.
    """

    def build(name: str, weights: Path | None, overrides: Mapping[str, Any]) -> Student:
        settings: list[Mapping[str, Any]] = [student_class.presets[name]]
        if weights is not None:
            if (weights / DESCRIPTION_FILE).is_file():
                settings.append(saved_settings(weights, name))
            if isinstance(student_class, HasInputFiles):
                settings.append(student_class.settings_beside(weights))
        config = build_config(student_class.config_class, *settings, overrides, where=str(weights or name))
        student: Student = student_class(name, config)
        if weights is not None:
            load_weights(student, weights)
        return student

    return build
