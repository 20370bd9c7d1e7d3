"""BERT's optimisers follow their formulas for each parameter, and need few operations for all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from advl_pipeline.training.optimiser import BertAdam, BertAdamW, BertMoments

BETAS, EPS, RATE = (0.9, 0.98), 1e-6, 0.01
NUM_PARAMETERS = 210


class CountedOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def drawn_parameters(number: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, 1 + index % 5, generator=generator)) for index in range(number)]


def groups_of(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    half = len(parameters) // 2
    return [
        {"params": parameters[:half], "weight_decay": 0.01},
        {"params": parameters[half:], "weight_decay": 0.0, "lr": 10 * RATE},
    ]


def one_by_one(kind: type[BertMoments], value: torch.Tensor, gradients: list[Any], rate: float, decay: float) -> Any:
    """Return the value after the steps by the docstrings' formulas; None is a step without gradient."""
    first, second, count = torch.zeros_like(value), torch.zeros_like(value), 0
    for gradient in gradients:
        if gradient is None:
            continue
        count += 1
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        move = first / (second.sqrt() + EPS)
        if kind is BertAdam:
            value = value - rate * (move + decay * value)
        else:
            value = value - rate * math.sqrt(1 - BETAS[1] ** count) / (1 - BETAS[0] ** count) * move
            value = value - rate * decay * value
    return value


@pytest.mark.parametrize("kind", [BertAdam, BertAdamW])
def test_every_parameter_follows_the_formula_whoever_has_a_gradient(kind: type[BertMoments]) -> None:
    parameters = drawn_parameters(6)
    before = [parameter.detach().clone() for parameter in parameters]
    optimiser = kind(groups_of(parameters), RATE, betas=BETAS, eps=EPS)
    generator = torch.Generator().manual_seed(1)
    gradients: list[list[Any]] = [[] for _ in parameters]
    for step in range(4):
        for index, parameter in enumerate(parameters):
            has_gradient = index != 1 or step % 2 == 1
            parameter.grad = torch.randn(parameter.shape, generator=generator) if has_gradient else None
            gradients[index].append(None if parameter.grad is None else parameter.grad.clone())
        optimiser.step()
    for index, parameter in enumerate(parameters):
        rate, decay = (RATE, 0.01) if index < 3 else (10 * RATE, 0.0)
        expected = one_by_one(kind, before[index], gradients[index], rate, decay)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [BertAdam, BertAdamW])
def test_a_step_needs_few_operations_for_all_parameters(kind: type[BertMoments]) -> None:
    parameters = drawn_parameters(NUM_PARAMETERS)
    optimiser = kind(groups_of(parameters), RATE, betas=BETAS, eps=EPS)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    with CountedOperations() as counted:
        optimiser.step()
    assert counted.number < 60
