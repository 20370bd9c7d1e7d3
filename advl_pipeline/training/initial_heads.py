"""Task heads at the start of a run: the checkpoint's where it has them for the same classes, else fresh ones.

A head is only meaningful with the classes that it was trained for. A run folder names its own. An original file does
not, so VQA's answers have to be given (`--answers`), and SNLI-VE's have the order that the student's authors use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file
from torch import nn

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.building import load_head
from advl_pipeline.students.catalogue import family_of
from advl_pipeline.students.checkpoints import KeyRules
from advl_pipeline.students.interface import Student
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.heads import HEADS_DESCRIPTION, HEADS_FILE
from advl_pipeline.training.targets import head_name

METER_ORDER = frozenset({"meter", "bridgetower"})
"""Families whose SNLI-VE classes are contradiction, neutral, entailment; the others have UNITER's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOrigin:
    """Where a head's values come from, and why."""

    origin: Literal["checkpoint", "fresh"]
    why: str


def fill_heads(
    heads: Mapping[str, nn.Module], student: Student, dataset: Dataset, config: FinetuneConfig
) -> dict[str, HeadOrigin]:
    """Fill fresh heads from the checkpoint that a run starts from, in place; say of each what became of it.

    Raises:
        ConfigError: the checkpoint's SNLI-VE head has its classes in another order than the run.
    """
    if config.init is None:
        return {name: HeadOrigin(origin="fresh", why="no checkpoint is given") for name in heads}
    if config.fresh_heads:
        return {name: HeadOrigin(origin="fresh", why="--fresh-heads") for name in heads}
    tasks = {head_name(task): task for task in dataset.tasks}
    saved = (config.init / DESCRIPTION_FILE).is_file()
    return {
        name: _from_run(head, name, tuple(dataset.label_names(tasks[name])), config.init)
        if saved
        else _from_original(head, tasks[name], student, config.init, config)
        for name, head in heads.items()
    }


def _from_run(head: nn.Module, name: str, label_names: tuple[str, ...], folder: Path) -> HeadOrigin:
    if not (folder / HEADS_DESCRIPTION).is_file():
        return HeadOrigin(origin="fresh", why="the folder holds a student without heads")
    described = json.loads((folder / HEADS_DESCRIPTION).read_text(encoding="utf-8"))
    if name not in described:
        return HeadOrigin(origin="fresh", why=f"the folder has heads for {', '.join(described)}")
    if tuple(described[name]["label_names"]) != label_names:
        return HeadOrigin(origin="fresh", why="the folder's head has other classes")
    tensors = load_file(folder / HEADS_FILE)
    head.load_state_dict(
        {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    )
    return HeadOrigin(origin="checkpoint", why="of the same classes")


def _from_original(head: nn.Module, task: str, student: Student, path: Path, config: FinetuneConfig) -> HeadOrigin:
    rules = getattr(student, "head_rules", None)
    if rules is None:
        return HeadOrigin(origin="fresh", why=f"{student.name} declares no heads in its original files")
    before = {name: value.clone() for name, value in head.state_dict().items()}
    task_rules: KeyRules = rules(task)
    report = load_head(head, path, task_rules)
    if not report.num_loaded:
        return HeadOrigin(origin="fresh", why="the file holds no head for this task")
    if report.missing or report.reinitialised:
        head.load_state_dict(before)
        return HeadOrigin(
            origin="fresh", why="of another shape: " + "; ".join([*report.reinitialised, *report.missing])
        )
    if task == "vqa" and config.answers is None:
        head.load_state_dict(before)
        return HeadOrigin(
            origin="fresh", why="the file has as many answers, but does not name them: give its list by --answers"
        )
    expected = "meter" if family_of(student.name) in METER_ORDER else "uniter"
    if task == "snli-ve" and config.label_order != expected:
        raise ConfigError(
            "The checkpoint's head has SNLI-VE's classes in another order.",
            where=str(path),
            why=f"{student.name} is trained in the order of {expected}, the run has that of {config.label_order}",
            next_command=f"--label-order {expected}, or --fresh-heads to start the head anew",
        )
    return HeadOrigin(origin="checkpoint", why="of as many classes")
