"""A student on disk: `student.json` (name, architecture, origin) beside `model.safetensors`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from advl_pipeline.atomic import make_folder, write_text
from advl_pipeline.errors import IdentityMismatch, WeightsUnavailable
from advl_pipeline.runs import names
from advl_pipeline.students.interface import Student
from advl_pipeline.tensor_files import parameter_digest, save_tensors

WEIGHTS_FILE = names.STUDENT_WEIGHTS
DESCRIPTION_FILE = names.STUDENT


def save_student(folder: Path, student: Student, *, origin: Mapping[str, Any]) -> None:
    """Write the student; the description comes first, so that a folder with anything of a student says so.

    Weights that are missing, or of another student, are told from the digest in the description.

    Args:
        folder: created when missing.
        student: its encoder; heads and projections are not part of it.
        origin: what it was made from, such as the identity of its pretraining.
    """
    make_folder(folder)
    description = {
        "student": student.name,
        "config": student.config_dict(),
        "parameters_digest": parameter_digest(student.state_dict()),
        "origin": dict(origin),
    }
    write_text(folder / DESCRIPTION_FILE, json.dumps(description, indent=2, sort_keys=True) + "\n")
    student.save_inputs(folder)
    save_tensors(folder / WEIGHTS_FILE, student.state_dict())


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description of a saved student.

    Raises:
        WeightsUnavailable: there is none in the folder.
    """
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsUnavailable(
            "There is no saved student here.",
            where=str(folder),
            next_command=f"advl pretrain --output {shlex.quote(str(folder))}",
        ) from None
    except json.JSONDecodeError as error:
        raise WeightsUnavailable(
            "The description of the saved student is damaged.", where=str(folder / DESCRIPTION_FILE), why=str(error)
        ) from None
    return description


def load_student_weights(folder: Path, name: str) -> tuple[dict[str, Any], Callable[[Student], None]]:
    """Return the architecture of a saved student and a function that loads its weights into a built one.

    Raises:
        WeightsUnavailable: nothing usable in the folder. IdentityMismatch: another student lies there, or the
            weights are not the ones that the description names.
    """
    description = read_description(folder)
    if description["student"] != name:
        raise IdentityMismatch(
            "These weights belong to another student.",
            where=str(folder),
            why=f"asked for {name}, found {description['student']}",
            next_command=f"--student {description['student']}",
        )

    def load(student: Student) -> None:
        try:
            tensors = load_file(folder / WEIGHTS_FILE)
            student.load_state_dict(tensors)
        except FileNotFoundError:
            raise WeightsUnavailable("The weights file is missing.", where=str(folder / WEIGHTS_FILE)) from None
        except RuntimeError as error:
            raise IdentityMismatch(
                "The weights do not fit the student.", where=str(folder / WEIGHTS_FILE), why=str(error)
            ) from None
        if parameter_digest(student.state_dict()) != description["parameters_digest"]:
            raise IdentityMismatch(
                "The weights file is not the one that student.json describes.", where=str(folder / WEIGHTS_FILE)
            )

    return description["config"], load
