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
    instance_weights,
    pathway_weights,
    soft_label_confidence,
)

PROBABILITY = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8)


@given(PROBABILITY, st.floats(0.0, 1.0), st.floats(0.1, 4.0))
@settings(deadline=None)
def test_every_rule_is_its_formula_bounded(teacher: list[float], student: float, top: float) -> None:
    c_t = torch.tensor(teacher, dtype=torch.float64)
    c_s = torch.full_like(c_t, student)
    rules = {
        "ratio": [min(top, t / (student + EPSILON)) for t in teacher],
        "uniform": [min(top, 1.0) for _ in teacher],
        "oracle": [min(top, t) for t in teacher],
    }
    for kind, expected in rules.items():
        found = instance_weights(kind, teacher_B=c_t, student_B=c_s, weight_max=top)
        assert found.tolist() == pytest.approx(expected)


def test_no_gradient_flows_into_the_student_through_a_weight() -> None:
    student = torch.tensor([0.5], requires_grad=True)
    assert not instance_weights("ratio", teacher_B=torch.tensor([0.5]), student_B=student, weight_max=2).requires_grad


@pytest.mark.parametrize("kind", ["ratio", "uniform"])
def test_no_weight_of_the_distiller_exceeds_the_bound(kind: Any) -> None:
    chosen = DistillationSettings(weighting=kind)
    teacher_B = torch.tensor([0.9] + [0.0] * 15)
    for confidence in ({"text": teacher_B}, {}):
        signal = TeacherSignal(confidence=confidence)
        weights_B = pathway_weights(chosen, signal, "text", torch.full((16,), 0.1))
        assert 0.0 < weights_B.max() <= WEIGHT_MAX


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
    by_ratio_B = instance_weights("ratio", teacher_B=teacher_B, student_B=torch.ones(num_examples), weight_max=2.0)
    for seed in range(20):
        found_B = pathway_weights(
            options, signal, "text", torch.ones(num_examples), generator=torch.Generator().manual_seed(seed)
        )
        assert found_B.sort().values.equal(by_ratio_B)
        assert not (found_B == by_ratio_B).any()
