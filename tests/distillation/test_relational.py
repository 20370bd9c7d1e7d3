"""Relational distillation against a loop, and what it must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from advl_pipeline.distillation.adapt_objectives import drift
from advl_pipeline.distillation.relational import TEMPERATURE, relational_divergence


def by_loop(student: torch.Tensor, teacher: torch.Tensor, group: torch.Tensor) -> list[float]:
    found = []
    for i in range(len(student)):
        others = [j for j in range(len(student)) if group[j] != group[i]]
        rows = []
        for states in (teacher, student):
            centred = states - states.mean(0)
            cosines = [float(functional.cosine_similarity(centred[i], centred[j], dim=0)) for j in others]
            top = max(cosines, default=0.0)
            powers = [math.exp((value - top) / TEMPERATURE) for value in cosines]
            rows.append([power / sum(powers) for power in powers])
        found.append(sum(p * math.log(p / q) for p, q in zip(*rows, strict=True) if p > 0))
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 9), st.integers(0, 10_000), st.integers(1, 4))
def test_equals_a_loop_over_pairs(num_nodes: int, seed: int, num_groups: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(num_nodes, 6, generator=generator)
    teacher = torch.randn(num_nodes, 4, generator=generator)
    group = torch.randint(num_groups, (num_nodes,), generator=generator)
    expected = torch.tensor(by_loop(student, teacher, group), dtype=torch.float32)
    torch.testing.assert_close(relational_divergence(student, teacher, group), expected, atol=1e-3, rtol=1e-3)


def test_is_zero_for_the_teacher_s_own_relations_and_has_no_gradient_into_the_teacher() -> None:
    teacher = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    student = teacher.detach().clone().requires_grad_()
    value = relational_divergence(student, teacher, torch.arange(8)).sum()
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-5)
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_a_node_without_others_has_no_divergence_and_a_finite_gradient() -> None:
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = relational_divergence(student, torch.randn(3, 5), torch.zeros(3, dtype=torch.long))
    assert value.tolist() == [0.0, 0.0, 0.0]
    value.sum().backward()
    assert bool(student.grad.isfinite().all())


def test_drift_counts_what_pretraining_knew_in_units_of_variance() -> None:
    reference = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    moved = reference.clone()
    moved[0] += 2.0
    variance = float(reference.var(0, unbiased=False).mean())
    weight = torch.zeros(40)
    shown = torch.ones(40, dtype=torch.bool)
    assert float(drift(moved, reference, weight, shown)) == 0.0
    weight[:4] = 1.0
    assert float(drift(moved, reference, weight, shown)) == pytest.approx(4.0 / variance / 4, rel=1e-4)
    assert float(drift(10 * moved, 10 * reference, weight, shown)) == pytest.approx(4.0 / variance / 4, rel=1e-4)
    padded = [functional.pad(rows, (0, 0, 0, 9), value=7.0) for rows in (2 * moved, reference)]
    padded[0][:40] = moved
    expected = drift(moved, reference, weight, shown)
    torch.testing.assert_close(
        drift(*padded, functional.pad(weight, (0, 9), value=1.0), functional.pad(shown, (0, 9))), expected
    )


def test_drift_from_nodes_that_are_all_alike_is_no_term() -> None:
    reference = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).expand(5, 6)
    states = (reference + 1e-3).detach().requires_grad_()
    value = drift(states, reference, torch.ones(5), torch.ones(5, dtype=torch.bool))
    value.backward()
    assert float(value.detach()) == 0.0
    assert not states.grad.any()
