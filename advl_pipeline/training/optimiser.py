"""Optimiser, parameter groups and learning rate of a run, from its settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from advl_pipeline.training.bert_optimisers import BertAdam, BertAdamW
from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.recipes import group_parameters
from advl_pipeline.training.schedule import learning_rate_at, linear_warmup_decay
from advl_pipeline.training.settings import TrainingSettings

LONGEST_WARMUP = 0.1
"""Share of a budget that a warm-up counted in steps may take where its recipe counts epochs: our choice."""


def build_optimizer(
    settings: TrainingSettings, model: FinetuneModel, *, student_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Return the optimiser with its parameter groups; their `lr` is the peak.

    Projections and heads are the "head" of a recipe: parts that start anew. The student's rates are multiplied by
    `student_scale`.
    """
    fresh = {id(parameter) for part in (model.heads, model.distiller) for parameter in part.parameters()}
    groups = _by_kind(settings, model) if settings.no_decay is None else _by_name(settings, model)
    if student_scale != 1.0:
        groups = _slowed(groups, fresh, student_scale)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True
        )
    kind = BertAdamW if settings.optimiser == "bert-adamw" else BertAdam
    return kind(groups, settings.learning_rate, betas=settings.betas, eps=settings.eps)


def rate_factor(settings: TrainingSettings, step: int, *, num_steps: int) -> float:
    """Return the factor of the peak learning rate at a step (from 0) of a budget."""
    if settings.schedule == "linear-nonzero":
        return linear_warmup_decay(step, num_steps=num_steps, warmup_fraction=settings.warmup)
    warmup = settings.warmup if settings.warmup < 1 else min(settings.warmup / num_steps, LONGEST_WARMUP)
    # Counted from 1, as UNITER does; the others count from 0, so that their first step has rate 0 and here the last.
    rate = learning_rate_at(step + 1, dataclasses.replace(settings, warmup=warmup), num_steps=num_steps)
    return rate / settings.learning_rate


def _slowed(groups: list[dict[str, Any]], fresh: set[int], scale: float) -> list[dict[str, Any]]:
    """Scale the rate of what is not fresh; a recipe's group may hold both."""
    found = []
    for group in groups:
        for is_fresh, factor in ((False, scale), (True, 1.0)):
            inside = [parameter for parameter in group["params"] if (id(parameter) in fresh) == is_fresh]
            if inside:
                found.append({**group, "params": inside, "lr": group["lr"] * factor})
    return found


def _by_kind(settings: TrainingSettings, model: FinetuneModel) -> list[dict[str, Any]]:
    """Spare biases, norms and scalars by kind of module."""
    fresh = {id(parameter) for part in (model.heads, model.distiller) for parameter in part.parameters()}
    no_decay = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)) or parameter.ndim == 0
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in fresh, id(parameter) in no_decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.learning_rate * (settings.head_lr_scale if is_fresh else 1.0),
            "weight_decay": 0.0 if undecayed else settings.weight_decay,
        }
        for (is_fresh, undecayed), parameters in groups.items()
    ]


def _by_name(settings: TrainingSettings, model: FinetuneModel) -> list[dict[str, Any]]:
    """Follow a recipe's rules over parameter names."""
    encoder, fresh = (
        {f"{prefix}{name}": value for prefix, part in parts for name, value in part.named_parameters()}
        for parts in ([("", model.student)], [("heads.", model.heads), ("distiller.", model.distiller)])
    )
    named = {name: value for name, value in {**encoder, **fresh}.items() if value.requires_grad}
    groups = group_parameters(
        [name for name in encoder if name in named],
        [name for name in fresh if name in named],
        settings,
    )
    return [
        {
            "params": [named[name] for name in group.names],
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
