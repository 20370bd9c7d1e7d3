"""Several teachers of one pathway: each balance against loops in numpy, its bounds, its gradients, its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.distillation.balance import (
    LARGEST_LOG_VARIANCE,
    bounded_log_variance,
    check_balance,
    uncertain_teachers,
    weighted_teachers,
)
from advl_pipeline.errors import ConfigError
from advl_pipeline.training.methods import teacher_weights

BOTH = {"vision": ["eyes", "lens"], "text": ["words"]}


def random_losses(num_teachers: int, num_examples: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_teachers, num_examples, generator=generator, dtype=torch.float64) * 4


def weighted_by_loop(losses: np.ndarray, weights: list[float]) -> list[float]:
    return [
        sum(weight * losses[k][b] for k, weight in enumerate(weights)) / sum(weights) for b in range(losses.shape[1])
    ]


def uncertain_by_loop(losses: np.ndarray, log_variances: list[float]) -> list[float]:
    """Kendall et al.'s objective, with the precision written as 1 / sigma^2 and the penalty as log sigma^2."""
    out = []
    for b in range(losses.shape[1]):
        total = 0.0
        for k, s in enumerate(log_variances):
            squared_sigma = math.exp(s)
            total += losses[k][b] / squared_sigma + math.log(squared_sigma)
        out.append(total / len(log_variances))
    return out


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


@given(
    log_variances=st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=4),
    num_examples=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_learned_weights_equal_the_loop(log_variances: list[float], num_examples: int, seed: int) -> None:
    losses = random_losses(len(log_variances), num_examples, seed)
    found = uncertain_teachers(losses, torch.tensor(log_variances, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), uncertain_by_loop(losses.numpy(), log_variances), rtol=1e-9, atol=1e-12)


def test_both_begin_as_the_mean_and_ignore_the_order_and_scale_of_weights() -> None:
    losses = random_losses(3, 4, 0)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    mean = losses.mean(0)
    torch.testing.assert_close(weighted_teachers(losses, torch.ones(3)), mean)
    torch.testing.assert_close(uncertain_teachers(losses, torch.zeros(3)), mean)
    torch.testing.assert_close(weighted_teachers(losses, 7 * weights), weighted_teachers(losses, weights))
    order = torch.tensor([2, 0, 1])
    for balanced in (weighted_teachers, uncertain_teachers):
        torch.testing.assert_close(balanced(losses[order], weights[order]), balanced(losses, weights))
        torch.testing.assert_close(balanced(losses[:, order], weights), balanced(losses, weights)[order])


def test_gradients_equal_finite_differences() -> None:
    free = torch.tensor([0.03, -0.05, 0.2], dtype=torch.float64, requires_grad=True)
    losses = random_losses(3, 4, 1).requires_grad_()
    instance_B = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)

    def objective(losses_KB: torch.Tensor, free_K: torch.Tensor) -> torch.Tensor:
        return (instance_B * uncertain_teachers(losses_KB, bounded_log_variance(free_K))).mean()

    assert torch.autograd.gradcheck(objective, (losses, free))
    step = 1e-6
    objective(losses, free).backward()  # type: ignore[no-untyped-call]
    assert free.grad is not None
    for k in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[k] = step
        with torch.no_grad():
            slope = (objective(losses, free + nudge) - objective(losses, free - nudge)) / (2 * step)
        assert free.grad[k].item() == pytest.approx(slope.item(), rel=1e-6)


@given(st.floats(-1e6, 1e6, width=32))
@settings(deadline=None)
def test_log_variances_are_bounded_and_grow_with_their_parameter(free: float) -> None:
    at = float(bounded_log_variance(torch.tensor(free)))
    assert abs(at) <= LARGEST_LOG_VARIANCE
    assert float(bounded_log_variance(torch.tensor(free + 1.0))) >= at
    assert float(bounded_log_variance(torch.tensor(0.0))) == 0.0


@pytest.mark.parametrize("instance_weight", [0.1, 2.0])
def test_what_is_learned_follows_the_loss_and_not_the_strength(instance_weight: float) -> None:
    """Adam at a usual rate and budget comes near s = log L of each teacher, whatever the weight of the instances."""
    losses = torch.tensor([[3.0, 2.0], [0.4, 0.6]])
    free = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=5e-4)
    for _ in range(300):
        optimizer.zero_grad()
        (instance_weight * uncertain_teachers(losses, bounded_log_variance(free))).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expected = [math.log(2.5), math.log(0.5)]
    assert bounded_log_variance(free).tolist() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("balance", "weights", "teachers", "complaint"),
    [
        ("equal", {"eyes": 1.0}, BOTH, "not used"),
        ("learned", {"eyes": 1.0}, BOTH, "not used"),
        ("learned", {}, {"vision": ["eyes"], "text": ["words"]}, "nothing to balance"),
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
    assert check_balance("learned", {}, BOTH, pathway="text") is None
    assert check_balance("equal", {}, {"vision": [], "text": ["words"]}, pathway="both") is None


def test_weights_are_read_from_name_and_number() -> None:
    assert teacher_weights(("hf:org/model@a=b=0.5", "minilm-l6=2")) == {"hf:org/model@a=b": 0.5, "minilm-l6": 2.0}
    for wrong in ("minilm-l6", "=1", "minilm-l6=", "minilm-l6=-1", "minilm-l6=inf", "minilm-l6=nan"):
        with pytest.raises(ConfigError, match="NAME=NUMBER"):
            teacher_weights((wrong,))
    with pytest.raises(ConfigError, match="two weights"):
        teacher_weights(("a=1", "a=2"))
