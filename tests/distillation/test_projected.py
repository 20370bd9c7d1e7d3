"""Projections of states against loops: distances, projectors, what they learn, and what runs take of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from safetensors.torch import load_file

from advl_pipeline.distillation.projected import build_projector, distance
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
def test_a_distance_equals_the_loop_and_its_gradient_reaches_the_student_only(kind: str) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(5, 12)), rng.normal(size=(5, 12)) * 3 + 1
    a, b = (torch.tensor(values, requires_grad=True) for values in rows)
    found = distance(a, b, kind)
    np.testing.assert_allclose(found.detach().numpy(), distance_by_loop(*rows, kind), rtol=1e-4)
    found.sum().backward()
    assert a.grad.abs().sum() > 0
    assert b.grad is None


def test_standardise_gives_mean_zero_and_variance_one_and_silences_constant_dimensions() -> None:
    values = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 10, 0.1, 3, 0]) + 7
    scaled = standardise(values, values.mean(0), values.var(0, unbiased=False))
    # The third dimension has the mean 7 and the deviation 0.1.
    assert_near(scaled.mean(0), torch.zeros(5), roundings=16, scale=70)
    assert_near(scaled[:, :4].var(0, unbiased=False), torch.ones(4), roundings=16, scale=70)
    assert scaled[:, 4].abs().max() == 0


def test_the_mlp_has_the_layers_of_viral_and_all_are_trained() -> None:
    mlp = build_projector("mlp", 6, 5)
    assert [tuple(part.weight.shape) for part in mlp if isinstance(part, torch.nn.Linear)] == [
        (2048, 6),
        (2048, 2048),
        (5, 2048),
    ]
    states_NH = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mlp(states_NH).sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in (states_NH, *mlp.parameters()))


FIELD = {"method": "naive-kd", "pathway": "vision", "distance": "cosine", "distill_layer": "fused"}

CHAT = {"student": "smolvlm-tiny", "batch_size": 2, "num_steps": 2}


def test_at_weight_zero_a_run_is_plain_and_else_gradients_reach_the_image_tower(
    small_corpus: Any, tmp_path: Path
) -> None:
    options = {**FIELD, "projector": "mlp"}
    runs: dict[str, dict[str, Any]] = {
        "plain": {"method": "plain", "cache": ()},
        "at zero": {**options, "distill_weight": 0.0},
        "taught": {**options, "distill_weight": 0.5},
    }
    for name, changes in runs.items():
        small_corpus.run(tmp_path / name, **CHAT, **changes)
    plain, at_zero, taught = (load_file(tmp_path / name / "model.safetensors") for name in runs)
    assert all(torch.equal(value, plain[name]) for name, value in at_zero.items())
    tower = [name for name in plain if "vision_model" in name]
    assert any(not torch.equal(taught[name], plain[name]) for name in tower)
