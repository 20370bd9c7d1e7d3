"""Weights of instances against formulas written out, and their bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.distillation.weighting import (
    EPSILON,
    WEIGHT_MAX,
    choice_confidence,
    pathway_weights,
    soft_label_confidence,
)

PROBABILITY = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8)


def weights(kind: Any, teacher_B: torch.Tensor, student_B: torch.Tensor) -> torch.Tensor:
    chosen, signal = DistillationSettings(weighting=kind), TeacherSignal(confidence={"text": teacher_B})
    return pathway_weights(chosen, signal, "text", student_B)


@given(PROBABILITY, st.floats(0.0, 1.0))
@settings(deadline=None)
def test_every_rule_is_its_formula_bounded(teacher: list[float], student: float) -> None:
    c_t = torch.tensor(teacher, dtype=torch.float64)
    c_s = torch.full_like(c_t, student)
    rules = {
        "ratio": [min(WEIGHT_MAX, t / (student + EPSILON)) for t in teacher],
        "uniform": [1.0 for _ in teacher],
        "oracle": teacher,
    }
    for kind, expected in rules.items():
        assert weights(kind, c_t, c_s).tolist() == pytest.approx(expected)


def test_no_gradient_flows_into_the_student_through_a_weight() -> None:
    student = torch.tensor([0.5], requires_grad=True)
    assert not weights("ratio", torch.tensor([0.5]), student).requires_grad


def test_without_a_confidence_weights_are_uniform() -> None:
    for kind in ("ratio", "uniform"):
        chosen = DistillationSettings(weighting=kind)
        assert pathway_weights(chosen, TeacherSignal(), "text", torch.full((4,), 0.1)).tolist() == [1.0] * 4


def test_confidence_is_the_probability_of_the_ground_truth() -> None:
    logits = torch.tensor([[2.0, 0.0, -torch.inf]])
    assert choice_confidence(logits, torch.tensor([0])).item() == pytest.approx(1 / (1 + math.exp(-2)))
    scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.0]])
    soft = soft_label_confidence(torch.tensor([[0.0, 1.0, 9.0], [1.0, 1.0, 1.0]]), scores)
    expected = (1.0 * 0.5 + 0.3 / (1 + math.exp(-1))) / 1.3
    assert soft.tolist() == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("num_examples", [2, 3, 8])
def test_shuffled_weights_are_all_of_other_instances(num_examples: int) -> None:
    teacher_B = torch.arange(1, num_examples + 1) / 10
    signal = TeacherSignal(confidence={"text": teacher_B})
    options = DistillationSettings(weight_shuffle=True)
    by_ratio_B = weights("ratio", teacher_B, torch.ones(num_examples))
    for seed in range(20):
        found_B = pathway_weights(
            options, signal, "text", torch.ones(num_examples), generator=torch.Generator().manual_seed(seed)
        )
        assert found_B.sort().values.equal(by_ratio_B)
        assert not (found_B == by_ratio_B).any()
