"""AdamW as the BERT-family originals run it (UNITER `optim/adamw.py`), which torch's is not.

Differences from `torch.optim.AdamW`: eps is added to the root of the *uncorrected* second moment, and the decoupled
weight decay comes after the update instead of before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class BertAdamW(torch.optim.Optimizer):
    """p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then p <- p - lr * weight_decay * p."""

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
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["first"] = torch.zeros_like(parameter)
            state["second"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["first"].mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        # A checkpoint gives the count back as a tensor, whose powers would be rounded to float32.
        count = int(state["step"])
        correction = math.sqrt(1.0 - beta2**count) / (1.0 - beta1**count)
        denominator = state["second"].sqrt().add_(group["eps"])
        parameter.addcdiv_(state["first"], denominator, value=-group["lr"] * correction)
        if group["weight_decay"]:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])
