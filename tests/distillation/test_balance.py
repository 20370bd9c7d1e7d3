"""Several teachers of one pathway: each balance against a loop in numpy, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.distillation.distiller import (
    check_balance,
    weighted_teachers,
)
from advl_pipeline.errors import ConfigError
from advl_pipeline.training.resolved import teacher_weights

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


def test_weights_begin_as_the_mean_and_their_order_and_scale_change_nothing() -> None:
    losses = random_losses(3, 4, 0)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    balanced = weighted_teachers(losses, weights)
    torch.testing.assert_close(weighted_teachers(losses, torch.ones(3)), losses.mean(0))
    torch.testing.assert_close(weighted_teachers(losses, 7 * weights), balanced)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(weighted_teachers(losses[order], weights[order]), balanced)
    torch.testing.assert_close(weighted_teachers(losses[:, order], weights), balanced[order])


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
