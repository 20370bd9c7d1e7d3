"""Initial values of task heads.

A run starts from the checkpoint's heads if they have the same classes, else from fresh ones: a head is only
meaningful with the classes that it was trained for. A run folder names its classes. A pretrained student's folder
has the head that named regions, which initialises multiple choice. An original file does not name its classes, so
VQA's answers must be given: by `--answers` if they are also the run's, by `--head-answers` if they differ, such as
those of LXMERT's pretraining. SNLI-VE's classes have the order that the student's authors use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Dataset, Task, head_name
from advl_pipeline.datasets.vqa_answers import read_vocabulary
from advl_pipeline.runs import names
from advl_pipeline.students.abilities import HasPublishedHeads
from advl_pipeline.students.checkpoints import KeyRules
from advl_pipeline.students.checkpoints import load_file as load_checkpoint
from advl_pipeline.students.heads import described_heads, under_present_names
from advl_pipeline.students.interface import Student
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.training.config import FinetuneConfig

HeadOrigin = dict[Literal["origin", "why"], str]
"""The origin of a head's values, `checkpoint`, `fresh` or `none`, and the reason."""


def _fresh(why: str) -> HeadOrigin:
    return {"origin": "fresh", "why": why}


def _taken(why: str) -> HeadOrigin:
    return {"origin": "checkpoint", "why": why}


def fill_heads(
    heads: Mapping[str, nn.Module], student: Student, dataset: Dataset, config: FinetuneConfig
) -> dict[str, HeadOrigin]:
    """Fill fresh heads from the checkpoint that a run starts from, in place; return the origin of each.

    Raises:
        ConfigError: the checkpoint's head has other answers than the list of `--head-answers`.
    """
    if not any(True for head in heads.values() for _ in head.parameters()):
        why = f"{student.name} scores answers by their likelihood"
        return {name: {"origin": "none", "why": why} for name in heads}
    if config.init is None:
        return {name: _fresh("no checkpoint is given") for name in heads}
    tasks = {head_name(task): task for task in dataset.tasks}
    saved = (config.init / DESCRIPTION_FILE).is_file()
    return {
        name: _from_run(head, name, tuple(dataset.label_names(tasks[name])), config.init)
        if saved
        else _from_original(head, tasks[name], student, config.init, dataset, config)
        for name, head in heads.items()
    }


def _from_run(head: nn.Module, name: str, label_names: tuple[str, ...], folder: Path) -> HeadOrigin:
    if not (folder / names.HEADS).is_file():
        return _fresh("the folder holds a student without heads")
    described = described_heads(folder)
    if name not in described:
        return _fresh(f"the folder has heads for {', '.join(described)}")
    if tuple(described[name]["label_names"]) != label_names:
        advice = "; its own list is given by --answer-list or --answers" if name == "answers" else ""
        return _fresh(f"the folder's head has other classes{advice}")
    tensors = {
        key.removeprefix(f"{name}."): value
        for key, value in under_present_names(load_file(folder / names.HEADS_WEIGHTS)).items()
        if key.startswith(f"{name}.")
    }
    kept, built = ({key: value.shape for key, value in state.items()} for state in (tensors, head.state_dict()))
    if kept != built:
        return _fresh("the folder's head is of another shape, of an earlier version")
    head.load_state_dict(tensors)
    return _taken(described[name].get("learned_by", "of the same classes"))


def _from_original(
    head: nn.Module, task: Task, student: Student, path: Path, dataset: Dataset, config: FinetuneConfig
) -> HeadOrigin:
    if not isinstance(student, HasPublishedHeads):
        return _fresh(f"{student.name} declares no heads in its original files")
    if task == "classes":
        return _fresh("the file does not name the classes of its head")
    task_rules = student.head_rules(head_name(task))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    is_answers = head_name(task) == "answers"
    if is_answers and config.head_answers is not None:
        return _by_answers(head, student, task_rules, path, dataset.label_names(task), config.head_answers)
    report = load_checkpoint(head, path, task_rules, must_fit=False)
    if not report.num_loaded:
        return _fresh("the file holds no head for this task")
    if report.missing or report.reinitialised:
        head.load_state_dict(before)
        return _fresh("of another shape: " + "; ".join([*report.reinitialised, *report.missing]))
    if is_answers and config.answers is None:
        head.load_state_dict(before)
        return _fresh("the file has as many answers, but does not name them: give its list by --answers")
    return _taken("of as many classes")


def _by_answers(
    head: nn.Module, student: Student, rules: KeyRules, path: Path, answers: Sequence[str], listed: Path
) -> HeadOrigin:
    """Load a head of other answers: shared answers keep their weights, the others start at zero.

    LXMERT does this with the head of its pretraining (`src/pretrain/qa_answer_table.py`).

    Raises:
        ConfigError: head and list have different numbers of answers. DatasetError: the file is not a list of answers.
    """
    theirs = read_vocabulary(listed)
    source = student.build_head("answers", len(theirs))
    report = load_checkpoint(source, path, rules, must_fit=False)
    if report.missing or report.reinitialised:
        raise ConfigError(
            "The checkpoint has no head of the listed answers.",
            where=str(path),
            why="; ".join([*report.reinitialised, *report.missing]),
            next_command=f"give --head-answers the list that this checkpoint was trained with, not {listed}",
        )
    place = {answer: index for index, answer in enumerate(theirs)}
    written: Callable[[str], str] = getattr(student, "pretraining_answer", str)
    pairs = [(row, place[written(answer)]) for row, answer in enumerate(answers) if written(answer) in place]
    state = source.state_dict()
    *_, last = (name for name, part in head.named_modules() if isinstance(part, nn.Linear))
    for kind in ("weight", "bias"):
        taken = torch.zeros_like(head.state_dict()[f"{last}.{kind}"])
        for row, index in pairs:
            taken[row] = state[f"{last}.{kind}"][index]
        state[f"{last}.{kind}"] = taken
    head.load_state_dict(state)
    return _taken(f"{len(pairs)} of {len(answers)} answers are in {listed.name}")
