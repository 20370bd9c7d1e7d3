"""Optimiser, parameter groups, learning rate and strength of the distillation over a run, from its settings."""

from __future__ import annotations

import dataclasses
import math
import re
from abc import abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Never

import torch
from torch import nn

from advl_pipeline.training.finetune_model import FinetuneModel
from advl_pipeline.training.recipes import FinetuningNumbers, TrainingSettings


def learning_rate_at(step: int, recipe: FinetuningNumbers[Never], *, num_steps: int) -> float:
    """Return the base learning rate of optimiser step `step`, counted from 0.

    Linear warm-up from 0, then linear to 0 at `num_steps`, constant, or divided by 10 at each milestone (a share of
    all steps). Never below `lr_floor`, which step 0 of a warm-up therefore gets (UNITER: 1e-8).
    """
    warmup = recipe.warmup if recipe.warmup >= 1 else recipe.warmup * num_steps
    if step < warmup:
        factor = step / warmup
    elif recipe.schedule == "linear":
        factor = max(0.0, (num_steps - step) / max(1.0, num_steps - warmup))
    elif recipe.schedule == "steps":
        factor = 0.1 ** sum(step >= milestone * num_steps for milestone in recipe.milestones)
    else:
        factor = 1.0
    value = recipe.learning_rate * factor
    return value if value > 0 else recipe.lr_floor


def linear_warmup_decay(step: int, *, num_steps: int, warmup_fraction: float) -> float:
    """Return the factor of the peak learning rate at a step (from 0): linear up, then linear to 0.

    The first step already learns, and the last one is not wasted at 0.
    """
    num_warmup = max(1, round(num_steps * warmup_fraction))
    if step < num_warmup:
        return (step + 1) / num_warmup
    return (num_steps - step) / (num_steps - num_warmup + 1)


def distillation_strength(
    step: int, *, num_steps: int, start: float, decay: Literal["none", "linear", "cosine"]
) -> float:
    """Return lambda at a step (from 0) of the finetune step: constant, or down to 0 at its end."""
    progress = step / max(1, num_steps - 1)
    if decay == "linear":
        return start * (1.0 - progress)
    if decay == "cosine":
        return start * 0.5 * (1.0 + math.cos(math.pi * progress))
    return start


Tensors = list[torch.Tensor]


class BertMoments(torch.optim.Optimizer):
    """m <- b1 * m + (1 - b1) * g and v <- b2 * v + (1 - b2) * g^2; how parameters move is the subclass's."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update of every parameter that has a gradient; losses are computed elsewhere."""
        for group in self.param_groups:
            # A parameter that had no gradient in some step has made fewer updates than the others of its group.
            by_count: dict[int, Tensors] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_count.setdefault(self._count(parameter), []).append(parameter)
            for count, parameters in by_count.items():
                self._update(parameters, group, count)

    @abstractmethod
    def move(self, parameters: Tensors, first: Tensors, second: Tensors, group: dict[str, Any], count: int) -> None:
        """Move parameters in place by their moments.

        Args:
            parameters: of one group.
            first: m of each.
            second: v of each.
            group: with `lr`, `betas`, `eps` and `weight_decay`.
            count: t, the number of updates of each, this one included.
        """

    def _count(self, parameter: torch.Tensor) -> int:
        """Count one more update of a parameter, whose moments start at zero, and return the number."""
        state = self.state[parameter]
        if not state:
            state["first"] = torch.zeros_like(parameter)
            state["second"] = torch.zeros_like(parameter)
        # A checkpoint gives the count back as a tensor, whose powers would be rounded to float32.
        count: int = int(state.get("step", 0)) + 1
        state["step"] = count
        return count

    def _update(self, parameters: Tensors, group: dict[str, Any], count: int) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        first = [self.state[parameter]["first"] for parameter in parameters]
        second = [self.state[parameter]["second"] for parameter in parameters]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1.0 - beta2)
        self.move(parameters, first, second, group, count)


class BertAdam(BertMoments):
    """p <- p - lr * (m / (sqrt(v) + eps) + weight_decay * p), with the moments as they are, uncorrected."""

    def move(self, parameters: Tensors, first: Tensors, second: Tensors, group: dict[str, Any], count: int) -> None:
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first, denominators)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


class BertAdamW(BertMoments):
    """p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then p <- p - lr * weight_decay * p."""

    def move(self, parameters: Tensors, first: Tensors, second: Tensors, group: dict[str, Any], count: int) -> None:
        beta1, beta2 = group["betas"]
        correction = math.sqrt(1.0 - beta2**count) / (1.0 - beta1**count)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(parameters, first, denominators, value=-group["lr"] * correction)
        if group["weight_decay"]:
            torch._foreach_add_(parameters, parameters, alpha=-group["lr"] * group["weight_decay"])


def clip_each(gradients: Tensors, most: float) -> None:
    """Scale each gradient in place whose norm is above `most`, as `nn.utils.clip_grad_norm_` does of one."""
    factors = torch._foreach_norm(gradients)
    torch._foreach_add_(factors, 1e-6)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, most)
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(gradients, factors)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Names of parameters that share a learning rate and a weight decay."""

    names: tuple[str, ...]
    learning_rate: float
    lr_scale: float
    weight_decay: float


def group_parameters(
    encoder_names: Iterable[str],
    head_names: Iterable[str],
    recipe: FinetuningNumbers[Never],
    spared: Collection[str] | None = None,
) -> tuple[ParameterGroup, ...]:
    """Split parameters into groups by (learning rate, weight decay), as the recipe's original does.

    The decay test is a search in the name, so a norm whose name does not match `no_decay` is decayed (UNITER's
    `img_layer_norm.weight`): that is the original's behaviour.

    Args:
        spared: names without decay [default: those in which `no_decay` is found].
    """
    no_decay = re.compile(recipe.no_decay) if recipe.no_decay else None
    rules = [(re.compile(rule.pattern), rule.scale) for rule in recipe.lr_scales]
    groups: dict[tuple[float, float], list[str]] = {}
    for is_head, names in ((True, head_names), (False, encoder_names)):
        for name in names:
            scale = recipe.head_lr_scale if is_head else 1.0
            if not is_head:
                scale = next((scale for pattern, scale in rules if pattern.search(name)), 1.0)
            found = no_decay is not None and no_decay.search(name)
            decay = 0.0 if (found if spared is None else name in spared) else recipe.weight_decay
            groups.setdefault((scale, decay), []).append(name)
    return tuple(
        ParameterGroup(
            names=tuple(names), learning_rate=recipe.learning_rate * scale, lr_scale=scale, weight_decay=decay
        )
        for (scale, decay), names in groups.items()
    )


LONGEST_WARMUP = 0.1
"""Share of a budget that a warm-up counted in steps may take where its recipe counts epochs: our choice."""


def build_optimizer(
    settings: TrainingSettings, model: FinetuneModel, *, student_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Return the optimiser with its parameter groups; their `lr` is the peak.

    Projections and heads are the "head" of a recipe: parts that start anew. The student's rates are multiplied by
    `student_scale`.
    """
    named = model.named_parameters()
    trained = {name.removeprefix("student."): value for name, value in named if value.requires_grad}
    fresh = {id(value) for part in (model.heads, model.distiller) for value in part.parameters()}
    spared = None
    if settings.no_decay is None:
        undecayed = {
            id(parameter)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if name == "bias"
            or isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d))
            or parameter.ndim == 0
        }
        spared = {name for name, value in trained.items() if id(value) in undecayed}
    found = group_parameters(
        [name for name, value in trained.items() if id(value) not in fresh],
        [name for name, value in trained.items() if id(value) in fresh],
        settings,
        spared,
    )
    groups: list[dict[str, Any]] = []
    for group in found:
        # A recipe's group may hold both.
        for is_fresh, scale in ((False, student_scale), (True, 1.0)):
            if inside := [trained[name] for name in group.names if (id(trained[name]) in fresh) == is_fresh]:
                rate = group.learning_rate * scale
                groups.append({"params": inside, "lr": rate, "weight_decay": group.weight_decay})
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
