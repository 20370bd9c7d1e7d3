"""Projections of states against loops: distances, projectors, what they learn, and what runs take of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from closeness import assert_near
from first_step import first_terms
from safetensors.torch import load_file
from torch import nn

from advl_pipeline.base.configuration import unused_options
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.distillation.projected import Projections, distance, projected_vision
from advl_pipeline.distillation.settings import DistillationSettings, Projector
from advl_pipeline.distillation.signal import Features, VisionSignal, standardise
from advl_pipeline.students.interface import StudentOutput
from advl_pipeline.students.registry import build_student
from advl_pipeline.studies.config import read_study
from advl_pipeline.studies.plan import build_plan
from advl_pipeline.training.checks import facts_of_run

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


N, R, H, D = 3, 4, 6, 5


@dataclass(frozen=True)
class Batch:
    num_sequences = N
    visual_mask_NR = torch.ones(N, R) > 0


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def projections_of(kind: Projector) -> Projections:
    """Return the maps to a vision teacher that a run of this option has."""
    torch.manual_seed(0)
    settings = DistillationSettings(projector=kind, distance="cosine")
    made = Distiller(settings, {"t": {"image": D, "region": D}}, hidden_size=H, pooled_size=H).vision["t"]
    assert isinstance(made, Projections)
    return made


def targets() -> VisionSignal:
    mask_NR = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]) > 0
    return VisionSignal(
        picture=Features(values_MD=draw(N, D, seed=1)),
        regions=Features(values_MD=draw(N, R, D, seed=2)),
        region_mask_BS=mask_NR,
    )


def output(states_NRH: torch.Tensor, *layers: torch.Tensor) -> StudentOutput:
    nothing = torch.zeros(N, 1, H)
    return StudentOutput(
        text_states_NLH=nothing, visual_states_NRH=states_NRH, pooled_NP=nothing[:, 0], visual_layers=layers
    )


def expected_loss(project: Any, states_NRH: torch.Tensor, signal: VisionSignal) -> torch.Tensor:
    """Return (N,): the mean over the tokens that count of 1 - cos(LN(P(v)), LN(g)), written out."""

    def normalised(value_D: torch.Tensor) -> torch.Tensor:
        return (value_D - value_D.mean()) / torch.sqrt(value_D.var(unbiased=False) + 1e-5)

    found = []
    for row in range(N):
        each = []
        for token in range(R):
            if signal.region_mask_BS[row, token]:
                a, b = normalised(project(states_NRH[row, token])), normalised(signal.regions_BSD[row, token])
                each.append(1 - (a @ b) / (a.norm() * b.norm()))
        found.append(torch.stack(each).mean())
    return torch.stack(found)


@pytest.mark.parametrize("kind", get_args(Projector))
def test_image_tokens_follow_by_the_formula(kind: Projector) -> None:
    projections, signal = projections_of(kind), targets()
    given: Any = Batch()
    states = [draw(N, R, H, seed=number) for number in (5, 6, 7)]
    layers = states[1:] if kind == "shared" else []
    found_N = projected_vision(projections, output(states[0], *layers), given, signal, "regions", "cosine")
    map_of = projections["region"]
    project: Any = map_of
    if kind == "batch-norm":
        assert isinstance(map_of, nn.ModuleDict)
        norm, mlp = nn.BatchNorm1d(H, track_running_stats=False), map_of["mlp"]
        # The statistics are of the tokens that count, which the loop asks about one by one.
        counted_XH = states[0][signal.region_mask_BS]
        rows = {tuple(row.tolist()): value for row, value in zip(counted_XH, norm(counted_XH), strict=True)}
        project = lambda state: mlp(rows[tuple(state.tolist())])  # noqa: E731
    if kind == "shared":
        expected_N = sum(expected_loss(project, one, signal) for one in layers) / len(layers)
    else:
        expected_N = expected_loss(project, states[0], signal)
    torch.testing.assert_close(found_N, expected_N, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", get_args(Projector))
def test_states_get_gradients_and_a_frozen_projector_none(kind: Projector) -> None:
    projections, states_NRH = projections_of(kind), draw(N, R, H, seed=5).requires_grad_()
    given: Any = Batch()
    projected_vision(projections, output(states_NRH), given, targets(), "both", "cosine").sum().backward()
    assert float(states_NRH.grad.abs().sum()) > 0
    learned = [parameter.grad is not None for parameter in projections.parameters()]
    assert not any(learned) if kind == "frozen" else all(learned)


FIELD = {"method": "naive-kd", "pathway": "vision", "distance": "cosine", "distill_layer": "fused"}

CHAT = {"student": "smolvlm-tiny", "batch_size": 2, "num_steps": 2}


def test_at_weight_zero_a_run_is_plain_and_else_gradients_reach_the_image_tower(
    small_corpus: Any, tmp_path: Path
) -> None:
    options = {**FIELD, "projector": "shared"}
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


def test_a_shared_projector_follows_other_layers(small_corpus: Any, tmp_path: Path) -> None:
    one, several = (
        first_terms(small_corpus.config(tmp_path / kind, **CHAT, **FIELD, projector=kind))["finetune/raw/vision"]
        for kind in ("mlp", "shared")
    )
    assert one != several


def test_layers_lie_from_half_to_three_quarters_of_the_depth(small_corpus: Any) -> None:
    student = build_student("smolvlm-tiny", overrides={"align_layer": 2})
    student.give_layers()
    dataset = small_corpus.dataset()
    with torch.no_grad():
        found = student.eval().encode(student.collate([dataset[0]]))
    # Of three layers: half is the second, three quarters too.
    assert [torch.equal(one, found.visual_states_NRH) for one in found.visual_layers] == [True]


def test_the_recipes_of_the_field_are_a_study_that_plans(tmp_path: Path) -> None:
    study = read_study(Path(__file__).parents[2] / "examples" / "generative.toml")
    cells = {cell.method: cell for cell in build_plan(study, cells=tmp_path).cells}
    projectors = {cell.finetune.distill.projector for name, cell in cells.items() if name.startswith("tokens-")}
    assert projectors == set(get_args(Projector)) - {"linear"}
    weights = [cell.finetune.distill.distill_weight for name, cell in cells.items() if name.startswith("tokens-")]
    assert min(weights) >= 0.2
    assert max(weights) <= 0.5
    for cell in cells.values():
        assert not unused_options(cell.finetune, facts_of_run(cell.finetune)) or not cell.teachers
