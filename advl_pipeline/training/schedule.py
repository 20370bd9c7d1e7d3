"""Schedules as pure functions of the step: learning rate and lambda."""

from __future__ import annotations

import math
from typing import Literal


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
