"""Optimiser, parameter groups and learning rate over a run, from its settings."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from advl_pipeline.training.config import TrainingSettings
from advl_pipeline.training.step import FinetuneModel


def linear_warmup_decay(step: int, *, num_steps: int, warmup_fraction: float) -> float:
    """Return the factor of the peak learning rate at a step (from 0): linear up, then linear to 0.

    The first step has a rate above 0, and so has the last.
    """
    num_warmup = max(1, round(num_steps * warmup_fraction))
    if step < num_warmup:
        return (step + 1) / num_warmup
    return (num_steps - step) / (num_steps - num_warmup + 1)


LONGEST_WARMUP = 0.1
"""Maximum warmup as a share of the budget, for warmup in steps and a recipe in epochs: our choice."""


def rate_factor(settings: TrainingSettings, step: int, *, num_steps: int) -> float:
    """Return the factor of the peak learning rate at a step (from 0) of a budget.

    Linear warmup from 0, then linear to 0 at `num_steps`, constant, or divided by 10 at each milestone (a share of
    all steps). The rate is never below `lr_floor`, which UNITER's last step therefore gets (1e-8).
    """
    if settings.schedule == "linear-nonzero":
        return linear_warmup_decay(step, num_steps=num_steps, warmup_fraction=settings.warmup)
    share = settings.warmup if settings.warmup < 1 else min(settings.warmup / num_steps, LONGEST_WARMUP)
    warmup = share * num_steps
    # UNITER counts from 1, so its last step has rate 0. The others count from 0, so their first step has rate 0.
    step += 1
    if step < warmup:
        factor = step / warmup
    elif settings.schedule == "linear":
        factor = max(0.0, (num_steps - step) / max(1.0, num_steps - warmup))
    elif settings.schedule == "steps":
        factor = 0.1 ** sum(step >= milestone * num_steps for milestone in settings.milestones)
    else:
        factor = 1.0
    rate = settings.learning_rate * factor
    return float((rate if rate > 0 else settings.lr_floor) / settings.learning_rate)


Tensors = list[torch.Tensor]


class BertMoments(torch.optim.Optimizer):
    """The moments m <- b1 * m + (1 - b1) * g and v <- b2 * v + (1 - b2) * g^2; subclasses move the parameters."""

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
        """Update every parameter that has a gradient; losses are computed elsewhere."""
        for group in self.param_groups:
            # A parameter without a gradient in some step has fewer updates than the others of its group.
            by_count: dict[int, Tensors] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"first": torch.zeros_like(parameter), "second": torch.zeros_like(parameter), "step": 0}
                # A checkpoint restores the count as a tensor, whose powers would be rounded to float32.
                state["step"] = int(state["step"]) + 1
                by_count.setdefault(state["step"], []).append(parameter)
            beta1, beta2 = group["betas"]
            for count, parameters in by_count.items():
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                first, second = ([self.state[each][name] for each in parameters] for name in ("first", "second"))
                torch._foreach_mul_(first, beta1)
                torch._foreach_add_(first, gradients, alpha=1.0 - beta1)
                torch._foreach_mul_(second, beta2)
                torch._foreach_addcmul_(second, gradients, gradients, value=1.0 - beta2)
                denominators = list(torch._foreach_sqrt(second))
                torch._foreach_add_(denominators, group["eps"])
                self.move(parameters, first, denominators, group, count)

    @abstractmethod
    def move(self, parameters: Tensors, first: Tensors, denominators: Tensors, group: dict[str, Any], t: int) -> None:
        """Move parameters in place, using their moments.

        Args:
            parameters: of one group.
            first: m of each.
            denominators: sqrt(v) + eps of each.
            group: with `lr`, `betas`, `eps` and `weight_decay`.
            t: the number of updates of each, including this one.
        """


class BertAdam(BertMoments):
    """The update p <- p - lr * (m / (sqrt(v) + eps) + weight_decay * p), without bias correction."""

    def move(self, parameters: Tensors, first: Tensors, denominators: Tensors, group: dict[str, Any], t: int) -> None:
        updates = torch._foreach_div(first, denominators)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


class BertAdamW(BertMoments):
    """The update p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then p <- (1 - lr * decay) * p."""

    def move(self, parameters: Tensors, first: Tensors, denominators: Tensors, group: dict[str, Any], t: int) -> None:
        beta1, beta2 = group["betas"]
        correction = math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        torch._foreach_addcdiv_(parameters, first, denominators, value=-group["lr"] * correction)
        if group["weight_decay"]:
            torch._foreach_add_(parameters, parameters, alpha=-group["lr"] * group["weight_decay"])


def clip_each(gradients: Tensors, most: float) -> None:
    """Scale each gradient whose norm exceeds `most`, in place, as `nn.utils.clip_grad_norm_` does for one."""
    factors = torch._foreach_norm(gradients)
    torch._foreach_add_(factors, 1e-6)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, most)
    torch._foreach_clamp_max_(factors, 1.0)
    torch._foreach_mul_(gradients, factors)


def parameter_groups(
    encoder: Mapping[str, nn.Parameter],
    head: Mapping[str, nn.Parameter],
    settings: TrainingSettings,
    *,
    spared: Collection[str] | None = None,
    encoder_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Split parameters into groups by learning rate and weight decay, as the recipe's original does.

    `no_decay` is searched in the names, so a norm whose name does not match is decayed (UNITER's
    `img_layer_norm.weight`), as in the original.

    Args:
        encoder: parameters by name.
        head: likewise, of parts with random initialisation.
        spared: names without decay [default: those in which `no_decay` is found].
        encoder_scale: multiplies the encoder's rates.

    Returns:
        Parameter groups for torch optimisers; `lr` is the peak.
    """
    groups: dict[tuple[float, float], tuple[list[nn.Parameter], list[nn.Parameter]]] = {}
    for is_head, parameters in ((True, head), (False, encoder)):
        for name, value in parameters.items():
            rules = (rule.scale for rule in settings.lr_scales if re.search(rule.pattern, name))
            scale = settings.head_lr_scale if is_head else next(rules, 1.0)
            is_found = bool(settings.no_decay) and re.search(settings.no_decay or "", name) is not None
            decay = 0.0 if (is_found if spared is None else name in spared) else settings.weight_decay
            groups.setdefault((scale, decay), ([], []))[is_head].append(value)
    return [
        {"params": parameters, "lr": settings.learning_rate * scale * of_part, "weight_decay": decay}
        for (scale, decay), parts in groups.items()
        for parameters, of_part in zip(parts, (encoder_scale, 1.0), strict=True)
        if parameters
    ]


def build_optimizer(
    settings: TrainingSettings, model: FinetuneModel, *, student_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Return the optimiser with its parameter groups; their `lr` is the peak.

    Projections and heads are the "head" of a recipe: parts with random initialisation. The student's rates are
    multiplied by `student_scale`.
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
    groups = parameter_groups(
        {name: value for name, value in trained.items() if id(value) not in fresh},
        {name: value for name, value in trained.items() if id(value) in fresh},
        settings,
        spared=spared,
        encoder_scale=student_scale,
    )
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True
        )
    kind = BertAdamW if settings.optimiser == "bert-adamw" else BertAdam
    return kind(groups, settings.learning_rate, betas=settings.betas, eps=settings.eps)


def bytes_by_part(settings: TrainingSettings, model: FinetuneModel) -> dict[str, int]:
    """Return the bytes of training state on the device, by part; activations are not included.

    `frozen_weights` includes the reference student of an adapt stage. All trained weights are counted as if a step
    reached them.
    """
    weights = [*model.parameters(), *(value for student in model.references for value in student.parameters())]
    frozen, trained = (
        sum(value.nbytes for value in weights if value.requires_grad is is_trained) for is_trained in (False, True)
    )
    num_moments = 2 if settings.optimiser != "sgd" else int(settings.momentum > 0)
    return {
        "frozen_weights": frozen,
        "trained_weights": trained,
        "gradients": trained,
        "optimiser": num_moments * trained,
    }
