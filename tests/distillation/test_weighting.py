"""Weights of instances and of teachers against formulas written out, their bounds, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.distillation.distiller import check_balance, weighted_teachers
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.distillation.weighting import (
    EPSILON,
    choice_confidence,
    instance_weights,
    pathway_weights,
    soft_label_confidence,
)
from advl_pipeline.errors import ConfigError
from advl_pipeline.training.resolved import teacher_weights

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
@pytest.mark.parametrize("top", [0.5, 2.0])
def test_no_weight_of_the_distiller_exceeds_the_bound(kind: Any, top: float) -> None:
    chosen = DistillationSettings(weighting=kind, weight_max=top)
    teacher_B = torch.tensor([0.9] + [0.0] * 15)
    for confidence in ({"text": teacher_B}, {}):
        signal = TeacherSignal(confidence=confidence)
        weights_B = pathway_weights(chosen, signal, "text", torch.full((16,), 0.5))
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
    options = DistillationSettings(weight_shuffle=True)
    by_ratio_B = instance_weights("ratio", teacher_B=teacher_B, student_B=torch.ones(num_examples), weight_max=2.0)
    for seed in range(20):
        found_B = pathway_weights(
            options, signal, "text", torch.ones(num_examples), generator=torch.Generator().manual_seed(seed)
        )
        assert found_B.sort().values.equal(by_ratio_B)
        assert not (found_B == by_ratio_B).any()


BOTH = {"vision": ["eyes", "lens"], "text": ["words"]}


def random_losses(num_teachers: int, num_examples: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_teachers, num_examples, generator=generator, dtype=torch.float64) * 4


def weighted_by_loop(losses: np.ndarray, weights: list[float]) -> list[float]:
    return [
        sum(weight * losses[k][b] for k, weight in enumerate(weights)) / sum(weights) for b in range(losses.shape[1])
    ]


@given(
    weights=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=4).filter(lambda found: sum(found) > 0.1),
    num_examples=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_given_weights_equal_the_loop(weights: list[float], num_examples: int, seed: int) -> None:
    losses = random_losses(len(weights), num_examples, seed)
    found = weighted_teachers(losses, torch.tensor(weights, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), weighted_by_loop(losses.numpy(), weights), rtol=1e-9)


@pytest.mark.parametrize(
    ("balance", "weights", "teachers", "complaint"),
    [
        ("equal", {"eyes": 1.0}, BOTH, "not used"),
        ("fixed", {"eyes": 1.0, "words": 1.0}, {"vision": ["eyes"], "text": ["words"]}, "nothing to balance"),
        ("fixed", {"eyes": 1.0, "words": 1.0}, BOTH, "without a weight: lens"),
        ("fixed", {"eyes": 1.0, "lens": 1.0, "words": 1.0, "nose": 1.0}, BOTH, "without a cache: nose"),
        ("fixed", {"eyes": 0.0, "lens": 0.0, "words": 1.0}, BOTH, "vision pathway's teachers add up to 0"),
    ],
)
def test_what_cannot_be_balanced_is_refused(
    balance: str, weights: dict[str, float], teachers: dict[str, list[str]], complaint: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_balance(balance, weights, teachers, pathway="both")
    assert complaint in f"{refused.value} {refused.value.why}"


def test_what_fits_is_allowed() -> None:
    weights = {"eyes": 0.0, "lens": 0.0, "words": 1.0}
    assert check_balance("fixed", weights, BOTH, pathway="text") is None
    assert check_balance("equal", {}, {"vision": [], "text": ["words"]}, pathway="both") is None


def test_weights_are_read_from_name_and_number() -> None:
    assert teacher_weights(("hf:org/model@a=b=0.5", "minilm-l6=2")) == {"hf:org/model@a=b": 0.5, "minilm-l6": 2.0}
    for wrong in ("minilm-l6", "=1", "minilm-l6=", "minilm-l6=-1", "minilm-l6=inf", "minilm-l6=nan"):
        with pytest.raises(ConfigError, match="NAME=NUMBER"):
            teacher_weights((wrong,))
    with pytest.raises(ConfigError, match="two weights"):
        teacher_weights(("a=1", "a=2"))
