"""Two ways to finetune a student that is large for its machine: recompute layers, or train low-rank updates only."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Student

LORA_TARGETS = ("query", "value", "q_proj", "v_proj", "Wqkv")
"""Names of the attention projections that get low-rank updates, over all families."""


def enable_gradient_checkpointing(student: Student) -> int:
    """Recompute each transformer layer in the backward pass instead of keeping its inside; returns how many do.

    Raises:
        ConfigError: the student has no layer that can (LXMERT).
    """
    layers = [part for part in student.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"{student.name} cannot recompute its layers.",
            why="none of them is a transformers GradientCheckpointingLayer",
            next_command="use smaller micro-batches: --accumulate",
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    return len(layers)


def add_lora(student: Student, *, rank: int, alpha: float, dropout: float = 0.0) -> int:
    """Freeze a student and add low-rank updates to its attention projections; returns the parameters that train.

    The names of the student's parameters change until `merge_lora`; save it after merging.

    Raises:
        ConfigError: peft is not installed, or the student has none of the known projections.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("Low-rank updates need peft.", next_command="pip install 'advl-pipeline[lora]'") from None
    targets = [name for name, _ in student.named_modules() if name.rpartition(".")[2] in LORA_TARGETS]
    if not targets:
        raise ConfigError(f"{student.name} has no attention projection by a known name.", why=", ".join(LORA_TARGETS))
    student.requires_grad_(False)
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    inject_adapter_in_model(settings, student)
    return sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)


def merge_lora(student: Student) -> None:
    """Add the updates to the weights and take the adapters out: the plain student again, at the plain cost."""
    from peft.tuners.lora import LoraLayer

    adapters = [(name, part) for name, part in student.named_modules() if isinstance(part, LoraLayer)]
    for name, adapter in adapters:
        parent, _, attribute = name.rpartition(".")
        holder: nn.Module = student.get_submodule(parent)
        merged: Any = adapter
        merged.merge()
        setattr(holder, attribute, merged.get_base_layer())
    student.requires_grad_(True)
