"""The Adams of the BERT-family originals, which torch's are not: both share their moments and differ in the move.

BertAdam is Adam without bias correction, the optimiser of LXMERT and VisualBERT (`lxrt/optimization.py`). BertAdamW
is UNITER's (`optim/adamw.py`): eps is added to the root of the *uncorrected* second moment, and the decoupled weight
decay comes after the update instead of before it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch


class BertMoments(torch.optim.Optimizer):
    """m <- b1 * m + (1 - b1) * g and v <- b2 * v + (1 - b2) * g^2; how a parameter moves is the subclass's."""

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
                    self._update(parameter, parameter.grad, group)
        return loss

    @abstractmethod
    def move(self, parameter: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Move a parameter in place by its moments `state["first"]` and `state["second"]`."""

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["first"] = torch.zeros_like(parameter)
            state["second"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["first"].mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        self.move(parameter, group, state)


class BertAdam(BertMoments):
    """p <- p - lr * (m / (sqrt(v) + eps) + weight_decay * p), with the moments as they are, uncorrected."""

    def move(self, parameter: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        update = state["first"] / (state["second"].sqrt() + group["eps"])
        update.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


class BertAdamW(BertMoments):
    """p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then p <- p - lr * weight_decay * p."""

    def move(self, parameter: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        # A checkpoint gives the count back as a tensor, whose powers would be rounded to float32.
        count = state["step"] = int(state.get("step", 0)) + 1
        correction = math.sqrt(1.0 - beta2**count) / (1.0 - beta1**count)
        denominator = state["second"].sqrt().add_(group["eps"])
        parameter.addcdiv_(state["first"], denominator, value=-group["lr"] * correction)
        if group["weight_decay"]:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])
