"""Adaptive Confidence-based Weighting against the formula written out, and its bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.distillation.relational import ALONE
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.distillation.weighting import (
    EPSILON,
    choice_confidence,
    instance_weights,
    normalise_to_batch_mean,
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
        "teacher": [min(top, t) for t in teacher],
        "gap": [min(top, max(0.0, t - student)) for t in teacher],
        "uniform": [min(top, 1.0) for _ in teacher],
    }
    for kind, expected in rules.items():
        found = instance_weights(kind, teacher_B=c_t, student_B=c_s, weight_max=top)
        assert found.tolist() == pytest.approx(expected)


def test_distils_most_where_the_teacher_is_right_and_the_student_is_not() -> None:
    teacher, student = torch.tensor([0.9, 0.9, 0.1, 0.1]), torch.tensor([0.3, 0.9, 0.3, 0.9])
    weights = instance_weights("ratio", teacher_B=teacher, student_B=student, weight_max=5.0)
    assert weights.argmax() == 0
    assert weights.argmin() == 3


def test_no_gradient_flows_into_the_student_through_a_weight() -> None:
    student = torch.tensor([0.5], requires_grad=True)
    assert not instance_weights("ratio", teacher_B=torch.tensor([0.5]), student_B=student, weight_max=2).requires_grad


WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 2.0)), min_size=1, max_size=20)


@given(WEIGHTS, st.floats(0.05, 20.0), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None)
def test_the_batch_mean_is_one_where_the_bound_allows_it(
    weights: list[float], top: float, dtype: torch.dtype
) -> None:
    given_B = torch.tensor(weights, dtype=dtype)
    found_B = normalise_to_batch_mean(given_B, weight_max=top)
    assert found_B.dtype == dtype
    assert found_B.min() >= 0.0
    assert found_B.max() <= torch.tensor(top, dtype=dtype)
    num_positive = int((given_B > 0).sum())
    assert torch.equal(found_B > 0, given_B > 0)
    assert found_B.mean().item() == pytest.approx(min(1.0, top * num_positive / len(weights)), rel=1e-5)
    order = torch.argsort(given_B, stable=True)
    assert (found_B[order].diff() >= 0).all()
    # Those below the bound keep their proportions.
    free = (found_B > 0) & (found_B < top * (1 - 1e-6))
    if free.any():
        ratio = found_B[free] / given_B[free]
        assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=1e-4)


@given(WEIGHTS, st.floats(0.05, 20.0), st.floats(1e-3, 1e3), st.randoms())
@settings(deadline=None)
def test_neither_scale_nor_order_of_the_batch_changes_normalised_weights(
    weights: list[float], top: float, factor: float, random: Any
) -> None:
    given_B = torch.tensor(weights, dtype=torch.float64)
    found_B = normalise_to_batch_mean(given_B, weight_max=top)
    torch.testing.assert_close(normalise_to_batch_mean(given_B * factor, weight_max=top), found_B)
    places = list(range(len(weights)))
    random.shuffle(places)
    torch.testing.assert_close(normalise_to_batch_mean(given_B[places], weight_max=top), found_B[places])


def test_normalised_weights_by_hand() -> None:
    for weights, top, expected in (
        ([0.5, 1.5, 4.0], 9.0, [0.25, 0.75, 2.0]),
        ([2.0, 0.1, 0.1, 0.1], 2.0, [2.0, 2 / 3, 2 / 3, 2 / 3]),
        ([0.0] * 15 + [0.4], 2.0, [0.0] * 15 + [2.0]),
        ([0.0, 0.0, 0.0], 2.0, [0.0, 0.0, 0.0]),
        ([2.0, 0.1], 0.5, [0.5, 0.5]),
        ([3.0, 3.0, 0.2], 1.0, [1.0, 1.0, 1.0]),
    ):
        found = normalise_to_batch_mean(torch.tensor(weights), weight_max=top)
        assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["ratio", "teacher", "gap", "uniform"])
@pytest.mark.parametrize("normalise", ["none", "batch-mean"])
@pytest.mark.parametrize("top", [0.5, 2.0])
def test_no_weight_of_the_distiller_exceeds_the_bound(kind: Any, normalise: Any, top: float) -> None:
    chosen = DistillationSettings(weighting=kind, weight_normalise=normalise, weight_max=top)
    teacher_B = torch.tensor([0.9] + [0.0] * 15)
    for confidence in ({"text": teacher_B}, {}):
        signal = TeacherSignal(confidence=confidence)
        weights_B = pathway_weights(chosen, signal, "text", torch.full((16,), 0.5), everywhere=ALONE)
        assert 0.0 < weights_B.max() <= top


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
    options = DistillationSettings(weighting="teacher", weight_shuffle=True)
    for seed in range(20):
        found_B = pathway_weights(
            options,
            signal,
            "text",
            torch.ones(num_examples),
            everywhere=ALONE,
            generator=torch.Generator().manual_seed(seed),
        )
        assert found_B.sort().values.equal(teacher_B)
        assert not (found_B == teacher_B).any()
