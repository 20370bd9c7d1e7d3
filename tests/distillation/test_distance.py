"""Distances against loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import assert_near

from advl_pipeline.distillation.projected import distance
from advl_pipeline.distillation.signal import standardise

KINDS = ("mse", "l1", "cosine", "smooth-l1")


def layer_norm_by_loop(values: np.ndarray) -> np.ndarray:
    out = np.empty_like(values)
    for row in range(len(values)):
        mean = sum(values[row]) / len(values[row])
        variance = sum((x - mean) ** 2 for x in values[row]) / len(values[row])
        out[row] = [(x - mean) / np.sqrt(variance + 1e-5) for x in values[row]]
    return out


def distance_by_loop(a: np.ndarray, b: np.ndarray, kind: str) -> list[float]:
    out = []
    for x, y in zip(layer_norm_by_loop(a), layer_norm_by_loop(b), strict=True):
        if kind == "cosine":
            out.append(1 - float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y)))
            continue
        total = 0.0
        for u, v in zip(x, y, strict=True):
            gap = abs(u - v)
            total += {"mse": gap**2, "l1": gap, "smooth-l1": 0.5 * gap**2 if gap < 1 else gap - 0.5}[kind]
        out.append(total / len(x))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop(kind: str) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(5, 12)), rng.normal(size=(5, 12)) * 3 + 1
    found = distance(torch.tensor(a), torch.tensor(b), kind)
    np.testing.assert_allclose(found.numpy(), distance_by_loop(a, b, kind), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_student_only(kind: str) -> None:
    a = torch.randn(3, 8, requires_grad=True)
    b = torch.randn(3, 8, requires_grad=True)
    distance(a, b, kind).sum().backward()
    assert a.grad.abs().sum() > 0
    assert b.grad is None


def test_standardise_gives_mean_zero_and_variance_one_and_silences_constant_dimensions() -> None:
    values = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 10, 0.1, 3, 0]) + 7
    scaled = standardise(values, values.mean(0), values.var(0, unbiased=False))
    # The third dimension has the mean 7 and the deviation 0.1.
    assert_near(scaled.mean(0), torch.zeros(5), roundings=16, scale=70)
    assert_near(scaled[:, :4].var(0, unbiased=False), torch.ones(4), roundings=16, scale=70)
    assert scaled[:, 4].abs().max() == 0
