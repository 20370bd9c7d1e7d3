"""Checkpoints: one safetensors file, written whole or not at all, never a pickle.

Keys: `model/<parameter>`, `optimizer/<index>/<state>`, under fp16 `scaler/<state>`; the file's metadata has the step.
Randomness needs no state: every step seeds itself from (seed, step).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from advl_pipeline.errors import CorruptCache
from advl_pipeline.tensor_files import save_tensors


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    phase: str,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write the state after `step` optimiser steps of a phase; `scaler` is that of fp16's losses."""
    tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    if scaler is not None:
        tensors |= {f"scaler/{key}": torch.as_tensor(value) for key, value in scaler.state_dict().items()}
    save_tensors(path, tensors, metadata={"step": str(step), "phase": phase})


def read_checkpoint(path: Path) -> tuple[int, str, dict[str, torch.Tensor]] | None:
    """Return (step, phase, tensors) of a checkpoint, or None when there is none.

    Raises:
        CorruptCache: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptCache(
            "The checkpoint is damaged.",
            where=str(path),
            why=str(error),
            next_command="run again with --no-resume to start over",
        ) from None
    return int(metadata["step"]), metadata["phase"], tensors


def restore(tensors: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Load a checkpoint's tensors; the optimiser only when the phase that it belongs to goes on."""
    prefix = "model/"
    model.load_state_dict({key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)})
    if optimizer is None:
        return
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def restore_scaler(tensors: dict[str, torch.Tensor], scaler: torch.amp.GradScaler) -> None:
    """Load the scale of fp16's losses, and how long it has held."""
    prefix = "scaler/"
    state = {key[len(prefix) :]: value.item() for key, value in tensors.items() if key.startswith(prefix)}
    if state:
        scaler.load_state_dict(state)
