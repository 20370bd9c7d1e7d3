"""Task heads of a saved student: their files in a run folder, and the shape of their logits.

The files are `heads.safetensors` and `heads.json`. Shapes: B examples, N sequences, C candidates, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from advl_pipeline.base.atomic import write_text
from advl_pipeline.base.configuration import json_text
from advl_pipeline.base.errors import IdentityMismatch, WeightsUnavailable
from advl_pipeline.base.tensors import save_tensors
from advl_pipeline.datasets.records import PUBLISHED_FOR
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json
from advl_pipeline.students.interface import Student

_TRAIN_AGAIN = "run the command that trained it again, with --no-resume"


def save_heads(folder: Path, heads: nn.ModuleDict, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Write heads by name, with task and class names of each; `learned_by` names the training behind it."""
    save_tensors(folder / names.HEADS_WEIGHTS, heads.state_dict())
    write_text(folder / names.HEADS, json_text(described) + "\n")


_OF_BENCHMARK = {benchmark: head for head, benchmark in PUBLISHED_FOR.items()}
"""Earlier names of heads, in `heads.json` and in the keys of weights -> the heads."""


def described_heads(folder: Path) -> dict[str, Any]:
    """Return the content of a run's `heads.json`: task and class names of each head."""
    return {_OF_BENCHMARK.get(name, name): facts for name, facts in read_json(folder / names.HEADS).items()}


def under_present_names(tensors: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the weights of heads with their keys, below a prefix, named after the heads of this version."""
    renamed = {}
    for key, value in tensors.items():
        name, dot, rest = key.removeprefix(prefix).partition(".")
        is_earlier = key.startswith(prefix) and name in _OF_BENCHMARK
        renamed[f"{prefix}{_OF_BENCHMARK[name]}{dot}{rest}" if is_earlier else key] = value
    return renamed


def load_heads(folder: Path, student: Student) -> tuple[nn.ModuleDict, dict[str, tuple[str, ...]]]:
    """Return the heads of a run and the class names of each.

    Raises:
        WeightsUnavailable: their files are missing. IdentityMismatch: an earlier version built other heads.
    """
    if not (folder / names.HEADS).exists():
        raise WeightsUnavailable("This run has no task heads.", where=str(folder), next_command=_TRAIN_AGAIN)
    description = described_heads(folder)
    heads = nn.ModuleDict(
        {name: student.build_head(name, max(1, len(entry["label_names"]))) for name, entry in description.items()}
    )
    try:
        heads.load_state_dict(under_present_names(load_file(folder / names.HEADS_WEIGHTS)))
    except RuntimeError as error:
        raise IdentityMismatch(
            "The task heads of this run are of another shape than its student has now.",
            where=str(folder),
            why=str(error),
            next_command=_TRAIN_AGAIN,
        ) from None
    return heads, {name: tuple(entry["label_names"]) for name, entry in description.items()}


def shape_logits(logits_NK: torch.Tensor, num_candidates: Sequence[int], is_choice: bool) -> torch.Tensor:
    """Return (B, C) for multiple choice, with -inf for candidates that an example lacks, else (B, K) unchanged."""
    if not is_choice:
        return logits_NK
    scores = torch.split(logits_NK.squeeze(-1), list(num_candidates))
    return torch.nn.utils.rnn.pad_sequence(list(scores), batch_first=True, padding_value=-torch.inf)
