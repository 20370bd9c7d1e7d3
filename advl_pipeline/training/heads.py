"""Task heads beside the student in a run folder: `heads.safetensors` and `heads.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from advl_pipeline.atomic import write_text
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset, head_name
from advl_pipeline.errors import IdentityMismatch, WeightsUnavailable
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json
from advl_pipeline.students.interface import Student
from advl_pipeline.tensors import save_tensors
from advl_pipeline.training.finetune_model import FinetuneModel


def build_heads(student: Student, dataset: Dataset) -> dict[str, nn.Module]:
    """Return a fresh head for each kind of task of the dataset; tasks that share a head get one."""
    heads: dict[str, nn.Module] = {}
    for task in dataset.tasks:
        if head_name(task) not in heads:
            num_classes = 1 if task in MULTIPLE_CHOICE_TASKS else len(dataset.label_names(task))
            heads[head_name(task)] = student.build_head(head_name(task), num_classes)
    return heads


def save_heads(folder: Path, model: FinetuneModel, dataset: Dataset) -> None:
    """Write the heads with the meaning of their classes."""
    save_tensors(folder / names.HEADS_WEIGHTS, model.heads.state_dict())
    description = {
        head_name(task): {"task": task, "label_names": list(dataset.label_names(task))} for task in dataset.tasks
    }
    write_text(folder / names.HEADS, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def save_choice_head(folder: Path, head: nn.Module) -> None:
    """Write a pretraining's naming head beside its student, as the head of multiple choice."""
    name = head_name("vcr-q2a")
    save_tensors(folder / names.HEADS_WEIGHTS, {f"{name}.{key}": value for key, value in head.state_dict().items()})
    description = {name: {"task": "vcr-q2a", "label_names": [], "learned_by": "naming regions in pretraining"}}
    write_text(folder / names.HEADS, json.dumps(description, indent=2) + "\n")


def load_heads(folder: Path, student: Student) -> tuple[nn.ModuleDict, dict[str, tuple[str, ...]]]:
    """Return the heads of a run and the class names of each.

    Raises:
        WeightsUnavailable: their files are missing. IdentityMismatch: an earlier version built other heads.
    """
    path = folder / names.HEADS
    if not path.exists():
        raise WeightsUnavailable(
            "This run has no task heads.",
            where=str(folder),
            next_command="give the command that trained it again, with --no-resume",
        )
    description: dict[str, Any] = read_json(path)
    heads = nn.ModuleDict(
        {name: student.build_head(name, max(1, len(entry["label_names"]))) for name, entry in description.items()}
    )
    try:
        heads.load_state_dict(load_file(folder / names.HEADS_WEIGHTS))
    except RuntimeError as error:
        raise IdentityMismatch(
            "The task heads of this run are of another shape than its student has now.",
            where=str(folder / names.HEADS_WEIGHTS),
            why=str(error),
            next_command="give the command that trained it again, with --no-resume",
        ) from None
    return heads, {name: tuple(entry["label_names"]) for name, entry in description.items()}
