"""Schedules as pure functions of the step: learning rate and lambda."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from advl_pipeline.training.recipes import Recipe
    from advl_pipeline.training.settings import TrainingSettings


def learning_rate_at(step: int, recipe: Recipe | TrainingSettings, *, num_steps: int) -> float:
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
