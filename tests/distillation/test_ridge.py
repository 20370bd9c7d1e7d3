"""The closed-form start of projections: against a direct solve, and what held-out rows say of a target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.distillation.distance import distance
from advl_pipeline.distillation.ridge import (
    MIN_R2,
    Moments,
    ProjectionFit,
    explained_share,
    solve_ridge,
)

H, D = 7, 5


def moments_of(states_MH: torch.Tensor, targets_MD: torch.Tensor, *, parts: int = 3) -> Moments:
    moments = Moments(states_MH.shape[1], targets_MD.shape[1])
    for states, targets in zip(states_MH.tensor_split(parts), targets_MD.tensor_split(parts), strict=True):
        moments.add(states, targets)
    return moments


def draw(seed: int, num_rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    # Far from the origin and of unequal scale, as hidden states are.
    states_MH = 3 + torch.randn(num_rows, H, generator=random, dtype=torch.float64) * torch.arange(1, H + 1)
    return states_MH, torch.randn(num_rows, D, generator=random, dtype=torch.float64) + states_MH[:, :D] - 2


@pytest.mark.parametrize("penalty", [1e-4, 0.3, 10.0])
def test_the_map_equals_a_direct_least_squares_solve(penalty: float) -> None:
    states_MH, targets_MD = draw(0)
    (found,) = solve_ridge(moments_of(states_MH, targets_MD), (penalty,))
    # Ridge is least squares with one more row for each dimension; the last column is the intercept, unpenalised.
    scale = states_MH.var(0, correction=0).mean().item()
    root = np.sqrt(penalty * scale * len(states_MH))
    rows = np.block([[states_MH.numpy(), np.ones((len(states_MH), 1))], [root * np.eye(H), np.zeros((H, 1))]])
    wanted, *_ = np.linalg.lstsq(rows, np.vstack([targets_MD.numpy(), np.zeros((H, D))]), rcond=None)
    np.testing.assert_allclose(found.weight_HD.numpy(), wanted[:H], atol=1e-8)
    np.testing.assert_allclose(found.bias_D.numpy(), wanted[H], atol=1e-8)


def test_the_share_explained_equals_the_one_from_the_rows() -> None:
    states_MH, targets_MD = draw(1)
    fitted, held_out = slice(0, 40), slice(40, 60)
    first = moments_of(states_MH[fitted], targets_MD[fitted])
    (found,) = solve_ridge(first, (0.1,))
    mean_D = targets_MD[fitted].mean(0)
    error = (targets_MD[held_out] - states_MH[held_out] @ found.weight_HD - found.bias_D).square().sum()
    wanted = 1 - error / (targets_MD[held_out] - mean_D).square().sum()
    share = explained_share(found, moments_of(states_MH[held_out], targets_MD[held_out]), mean_D)
    assert share == pytest.approx(wanted.item(), rel=1e-9)
    assert 0 < share < 1


def fit_of(states_MH: torch.Tensor, targets_MD: torch.Tensor) -> ProjectionFit:
    fit = ProjectionFit(states_MH.shape[1], targets_MD.shape[1])
    is_held_out_M = torch.arange(len(states_MH)) % 4 == 0
    for part in torch.arange(len(states_MH)).tensor_split(5):
        fit.add(states_MH[part].float(), targets_MD[part].float(), is_held_out_M[part])
    return fit


def test_a_linear_target_is_found_and_a_shuffled_one_is_not() -> None:
    random = torch.Generator().manual_seed(2)
    states_MH = torch.randn(1200, 16, generator=random)
    targets_MD = states_MH @ torch.randn(16, 32, generator=random) + torch.randn(1200, 32, generator=random)
    projection = nn.Linear(16, 32)
    known = fit_of(states_MH, targets_MD).solve(projection, "mse")
    shuffled = fit_of(states_MH, targets_MD[torch.randperm(1200, generator=random)]).solve(projection, "mse")
    assert known is not None
    assert shuffled is not None
    assert known.r2 is not None
    assert known.r2 > 0.8
    assert known.is_predictable
    assert known.distance_before == pytest.approx(2.0, abs=0.3)
    assert known.distance_after < 0.15
    assert shuffled.r2 is not None
    assert shuffled.r2 < MIN_R2 / 2
    assert not shuffled.is_predictable
    assert shuffled.distance_after > 1.8
    # Nothing can be said for a target that says nothing, so the strongest penalty wins.
    assert shuffled.penalty > known.penalty


def test_the_map_is_of_all_rows_and_the_distance_of_held_out_ones() -> None:
    states_MH, targets_MD = draw(3, num_rows=200)
    projection = nn.Linear(H, D)
    found = fit_of(states_MH, targets_MD).solve(projection, "cosine")
    assert found is not None
    normal_MD = functional.layer_norm(targets_MD.float(), (D,)).double()
    float_MH = states_MH.float().double()
    (wanted,) = solve_ridge(moments_of(float_MH, normal_MD), (found.penalty,))
    torch.testing.assert_close(found.map.weight_HD, wanted.weight_HD)
    held_out = torch.arange(200) % 4 == 0
    (others,) = solve_ridge(moments_of(float_MH[~held_out], normal_MD[~held_out]), (found.penalty,))
    predicted = float_MH[held_out] @ others.weight_HD + others.bias_D
    after = distance(predicted, targets_MD[held_out], "cosine").mean().item()
    assert found.distance_after == pytest.approx(after, rel=1e-4)
    before = distance(projection(states_MH[held_out].float()), targets_MD[held_out], "cosine").mean().item()
    assert found.distance_before == pytest.approx(before, rel=1e-4)


def test_without_held_out_rows_nothing_is_judged_and_without_rows_nothing_is_fitted() -> None:
    states_MH, targets_MD = draw(4)
    fit = ProjectionFit(H, D)
    assert fit.solve(nn.Linear(H, D), "mse") is None
    fit.add(states_MH, targets_MD, torch.zeros(len(states_MH), dtype=torch.bool))
    found = fit.solve(nn.Linear(H, D), "mse")
    assert found is not None
    assert found.r2 is None
    assert found.is_predictable
    assert found.distance_after < found.distance_before
