"""The Adams of the BERT-family originals, which torch's are not: both share their moments and differ in the move.

BertAdam is Adam without bias correction, the optimiser of LXMERT and VisualBERT (`lxrt/optimization.py`). BertAdamW
is UNITER's (`optim/adamw.py`): eps is added to the root of the *uncorrected* second moment, and the decoupled weight
decay comes after the update instead of before it.

All parameters of a group move in a few operations on lists of tensors, as torch's own optimisers do with `foreach`:
one launch for each parameter would cost a GPU more than the arithmetic.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch

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
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # A parameter that had no gradient in some step has made fewer updates than the others of its group.
            by_count: dict[int, Tensors] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_count.setdefault(self._count(parameter), []).append(parameter)
            for count, parameters in by_count.items():
                self._update(parameters, group, count)
        return loss

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
