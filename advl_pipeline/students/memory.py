"""Ways to save memory in finetuning: recompute layers, train only low-rank updates, hold frozen weights in bf16.

Low-rank updates are merged into a plain student. For a student that starts from published weights and answers in
words, they are saved separately in the format of peft, so that a run needs megabytes instead of gigabytes on disk.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable
from advl_pipeline.base.packages import needs_extra
from advl_pipeline.runs import names
from advl_pipeline.students.bert_parts import RecomputableLayer
from advl_pipeline.students.interface import LoraSettings, Student
from advl_pipeline.students.options import StudentOptions

LORA_TARGETS = ("query", "value", "q_proj", "v_proj", "Wqkv")
"""Names of the attention projections with low-rank updates, in all families."""


def enable_gradient_checkpointing(student: Student) -> None:
    """Recompute the activations of each transformer layer in the backward pass.

    Raises:
        ConfigError: no layer of the student supports it (LXMERT).
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    kinds = (RecomputableLayer, GradientCheckpointingLayer)
    layers: list[Any] = [part for part in student.modules() if isinstance(part, kinds)]
    if not layers:
        raise ConfigError(
            f"--gradient-checkpointing needs layers that can be recomputed, and {student.name} has none.",
            why="none of them is transformers' GradientCheckpointingLayer",
            next_command="use --accumulate",
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def hold_frozen_in_bf16(student: Student) -> None:
    """Round the frozen weights of a student to bf16, in place; trained weights and buffers keep their dtype."""
    for parameter in student.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


PEFT_PREFIX = "base_model.model."
"""Prefix of module names in an adapter's file, in place of the student's own prefix."""
STUDENT_PREFIX = "model."


def lora_settings(student: Student, options: StudentOptions) -> LoraSettings | None:
    """Return the low-rank updates of a run; None if all weights are trained."""
    usual = student.lora or LoraSettings(rank=1, alpha=2.0, targets=LORA_TARGETS)
    rank = options.lora_rank
    if rank is None:
        rank = usual.rank if student.lora is not None and options.init is not None else 0
    return replace(usual, rank=rank, alpha=usual.alpha / usual.rank * rank) if rank else None


def _peft_config(settings: LoraSettings, **more: Any) -> Any:
    with needs_extra("lora", where="--lora-rank"):
        from peft import LoraConfig
    excluded = settings.excluded or None
    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, exclude_modules=excluded, **more)


def add_lora(student: Student, settings: LoraSettings) -> None:
    """Freeze a student and add low-rank updates to some modules.

    The names of the student's parameters change until `merge_lora`; save the student after merging.

    Raises:
        ConfigError: peft is not installed, or the student has none of the modules.
    """
    ends = {name.rpartition(".")[2] for name, _ in student.named_modules()}
    targets = [name for name in settings.targets if name in ends]
    config = _peft_config(settings, target_modules=targets)
    if not targets:
        raise ConfigError(f"{student.name} has no module by one of these names.", why=", ".join(settings.targets))
    from peft import inject_adapter_in_model

    student.requires_grad_(False)
    inject_adapter_in_model(config, student)


def merge_lora(student: Student) -> None:
    """Merge the updates into the weights and remove the adapters, which restores the plain student."""
    from peft.tuners.lora import LoraLayer

    adapters = [(name, part) for name, part in student.named_modules() if isinstance(part, LoraLayer)]
    for name, adapter in adapters:
        parent, _, attribute = name.rpartition(".")
        holder: nn.Module = student.get_submodule(parent)
        merged: Any = adapter
        merged.merge()
        setattr(holder, attribute, merged.get_base_layer())
    student.requires_grad_(True)


def adapter_tensors(student: Student) -> dict[str, torch.Tensor]:
    """Return the low-rank updates of a student, by peft's names."""
    return {
        PEFT_PREFIX + name.removeprefix(STUDENT_PREFIX).replace(".default.", "."): value
        for name, value in student.state_dict().items()
        if ".lora_" in name
    }


def save_adapter_config(folder: Path, settings: LoraSettings, *, base: str) -> None:
    """Write the peft configuration that adds saved updates to transformers' model of the weights `base`."""
    config = _peft_config(
        settings, target_modules=list(settings.targets), base_model_name_or_path=base, inference_mode=True
    )
    config.save_pretrained(str(folder))


def load_adapter(student: Student, folder: Path) -> dict[str, torch.Tensor]:
    """Merge saved low-rank updates into a student with their base weights; return the updates.

    Raises:
        IdentityMismatch: the updates belong to another student. WeightsUnavailable: they are missing or damaged.
    """
    try:
        config = json.loads((folder / names.ADAPTER).read_text(encoding="utf-8"))
        saved: dict[str, torch.Tensor] = load_file(folder / names.ADAPTER_WEIGHTS)
    except (FileNotFoundError, json.JSONDecodeError, SafetensorError) as error:
        raise WeightsUnavailable("The low-rank updates cannot be read.", where=str(folder), why=str(error)) from None
    targets = tuple(sorted(config["target_modules"]))
    excluded = config.get("exclude_modules") or ""
    add_lora(student, LoraSettings(rank=config["r"], alpha=config["lora_alpha"], targets=targets, excluded=excluded))
    tensors = adapter_tensors(student)
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in tensors.items()}:
        raise IdentityMismatch("The low-rank updates belong to another student.", where=str(folder))
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(saved[name])
    merge_lora(student)
    return saved
