"""A student on disk: `student.json` (name, architecture, origin) next to `model.safetensors`; and built, from there,
from a published checkpoint, or with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_tensors

from advl_pipeline.base.atomic import make_folder, write_text
from advl_pipeline.base.configuration import build_config, json_text
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable, advise
from advl_pipeline.base.tensors import parameter_digest, save_tensors
from advl_pipeline.runs import names
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
"""Settings of 0.2, which stored where the files of a student's regions lay, as `regions` too."""

_GONE = {"train_towers": False, "max_new_tokens": 10}
"""Settings that went, with what every student now has; one that was stored with another value is refused."""

WEIGHTS_FILE = names.STUDENT_WEIGHTS
DESCRIPTION_FILE = names.STUDENT

BASE = "base"
"""In a description: the weights that a student's low-rank updates belong to, and their digest."""


def save_student(
    folder: Path,
    student: Student,
    *,
    origin: Mapping[str, Any],
    updates: LoraSettings | None = None,
    base: Path | None = None,
) -> None:
    """Write the student; the description comes first, so that a folder with anything of a student says so.

    Weights that are missing, or of another student, are found by the digest in the description.

    Args:
        folder: created when missing.
        student: its encoder; heads and projections are not part of it.
        origin: what it was made from, such as the identity of its pretraining.
        updates: low-rank updates that were added to it, to be written alone.
        base: the weights that updates belong to: a folder, a file or `hf:ORG/MODEL`.
    """
    make_folder(folder)
    tensors = student.state_dict() if updates is None else adapter_tensors(student)
    belongs: dict[str, Any] = {}
    if updates is not None and base is not None:
        weights = str(base if is_on_hub(base) else base.resolve())
        belongs = {BASE: {"weights": weights, "digest": weights_digest(located(base))}}
        save_adapter_config(folder, updates, base=weights)
    write_description(folder, student, tensors, origin=origin, **belongs)
    student.save_inputs(folder)
    save_tensors(folder / (WEIGHTS_FILE if updates is None else names.ADAPTER_WEIGHTS), tensors)


def write_description(
    folder: Path, student: Student, tensors: Mapping[str, torch.Tensor], *, origin: Mapping[str, Any], **more: Any
) -> None:
    """Write what makes a folder that of a student; of a student that is still to be made, without tensors."""
    make_folder(folder)
    description = {
        **more,
        "student": student.name,
        "config": student.config_dict(),
        "parameters_digest": parameter_digest(tensors),
        "origin": dict(origin),
    }
    write_text(folder / DESCRIPTION_FILE, json_text(description, sort_keys=True) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description of a saved student.

    Raises:
        WeightsUnavailable: there is none in the folder.
    """
    file = folder / DESCRIPTION_FILE
    if not file.is_file():
        what, following = "There is no saved student here.", making_command(folder.name, folder) or ""
        raise WeightsUnavailable(what, where=str(folder), next_command=following)
    try:
        description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        what = "The description of the saved student is damaged."
        raise WeightsUnavailable(what, where=str(file), why=str(error)) from None
    return description


def saved_settings(folder: Path, name: str) -> dict[str, Any]:
    """Return the architecture of a saved student.

    Raises:
        WeightsUnavailable: nothing usable in the folder. IdentityMismatch: another student is there.
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
    """Fill a student from a folder that `save_student` wrote, or from an original checkpoint.

    Raises:
        WeightsUnavailable: weights are missing or damaged. IdentityMismatch: another student is there, the weights
            are not the ones that the description names, or files of a finished run changed. ConfigError: a checkpoint
            does not fill the student.
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
        what = f"The weights file is {'missing' if isinstance(error, FileNotFoundError) else 'damaged'}."
        raise WeightsUnavailable(what, where=str(where), why=str(error), next_command=remedy) from None
    except RuntimeError as error:
        following = f"use the version of ADVL that saved it, or {remedy}"
        what = "The weights do not fit the student."
        raise IdentityMismatch(what, where=str(where), why=str(error), next_command=following) from None
    _require_described(student.state_dict(), description, where)


def _require_described(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any], file: Path) -> None:
    """Refuse tensors of another digest than a description has."""
    if parameter_digest(tensors) != description["parameters_digest"]:
        raise IdentityMismatch("The weights file is not the one that student.json describes.", where=str(file))


def _described(folder: Path, name: str) -> dict[str, Any]:
    description = read_description(folder)
    if description["student"] != name:
        other = description["student"]
        what, why = "These weights belong to another student.", f"asked for {name}, found {other}"
        raise IdentityMismatch(what, where=str(folder), why=why, next_command=f"--student {other}")
    return description


def _load_updates(student: Student, folder: Path, description: Mapping[str, Any]) -> None:
    """Fill a student from the weights that low-rank updates belong to, and merge the updates into it."""
    base = Path(description[BASE]["weights"])
    source = located(base)
    if not weight_files(source):
        what = "The weights that the run's low-rank updates belong to are not there."
        why, following = f"{folder} holds the updates alone", f"put the weights back at {base}"
        raise WeightsUnavailable(what, where=str(base), why=why, next_command=following)
    if weights_digest(source) != description[BASE]["digest"]:
        what = "The weights are not those that the run's low-rank updates belong to."
        raise IdentityMismatch(what, where=str(base))
    load_weights(student, source)
    _require_described(load_adapter(student, folder), description, folder / names.ADAPTER_WEIGHTS)


def _load_original(student: Student, path: Path) -> None:
    """Fill a student from a checkpoint; keys of heads and of pretraining are set aside, others are named."""
    report = student.load_published(path)
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

    Settings are those of a preset, then of a saved folder, then of the files next to the weights, then overrides.

    Args:
        student_class: has `config_class`, `presets` (name -> settings) and, of published weights, `rules`.
    """

    def build(name: str, weights: Path | None, overrides: Mapping[str, Any]) -> Student:
        settings: list[Mapping[str, Any]] = [student_class.presets[name]]
        if weights is not None:
            if (weights / DESCRIPTION_FILE).is_file():
                settings.append(saved_settings(weights, name))
            settings.append(student_class.settings_beside(weights))
        config = build_config(student_class.config_class, *settings, overrides, where=str(weights or name))
        student: Student = student_class(name, config)
        if weights is not None:
            load_weights(student, weights)
        return student

    return build
