"""Optimisers follow their formulas by few operations; parameter groups and rates are those of the recipes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from advl_pipeline.base.configuration import build_config
from advl_pipeline.distillation.distiller import Distiller
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.config import FinetuneConfig, Optimiser, TrainingSettings
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.optimiser import (
    BertAdam,
    BertAdamW,
    BertMoments,
    build_optimizer,
    parameter_groups,
    rate_factor,
)
from advl_pipeline.training.resolved import resolve_method, resolve_run
from advl_pipeline.training.step import FinetuneModel

BETAS, EPS, RATE = (0.9, 0.98), 1e-6, 0.01
NUM_PARAMETERS = 210


class CountedOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def one_by_one(kind: type[BertMoments], value: torch.Tensor, gradients: list[Any], rate: float, decay: float) -> Any:
    """Return the value after the steps by the docstrings' formulas; None is a step without gradient."""
    first, second, count = torch.zeros_like(value), torch.zeros_like(value), 0
    for gradient in gradients:
        if gradient is None:
            continue
        count += 1
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        move = first / (second.sqrt() + EPS)
        if kind is BertAdam:
            value = value - rate * (move + decay * value)
        else:
            value = value - rate * math.sqrt(1 - BETAS[1] ** count) / (1 - BETAS[0] ** count) * move
            value = value - rate * decay * value
    return value


@pytest.mark.parametrize("kind", [BertAdam, BertAdamW])
def test_every_parameter_follows_the_formula_by_few_operations(kind: type[BertMoments]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 1 + index % 5, generator=generator)) for index in range(NUM_PARAMETERS)]
    before = [parameter.detach().clone() for parameter in parameters]
    half = NUM_PARAMETERS // 2
    groups = [
        {"params": parameters[:half], "weight_decay": 0.01},
        {"params": parameters[half:], "weight_decay": 0.0, "lr": 10 * RATE},
    ]
    optimiser = kind(groups, RATE, betas=BETAS, eps=EPS)
    gradients: list[list[Any]] = [[] for _ in parameters]
    for step in range(4):
        for index, parameter in enumerate(parameters):
            # One has a gradient in every other step.
            has_gradient = index != 1 or step % 2 == 1
            parameter.grad = torch.randn(parameter.shape, generator=generator) if has_gradient else None
            gradients[index].append(None if parameter.grad is None else parameter.grad.clone())
        with CountedOperations() as counted:
            optimiser.step()
    assert counted.number < 60
    for index, parameter in enumerate(parameters):
        rate, decay = (RATE, 0.01) if index < half else (10 * RATE, 0.0)
        expected = one_by_one(kind, before[index], gradients[index], rate, decay)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def config(student: str, **changes: Any) -> FinetuneConfig:
    return build_config(FinetuneConfig, {"dataset": "vcr", "output": "run", "student": student}, changes)


def settle(student: str, task: str, *, num_labelled: int = 425_846) -> TrainingSettings:
    asked = config(student, method="plain")
    method = resolve_method(asked)
    return resolve_run(asked, method, kind=task, num_labelled=num_labelled, is_published=True).settings


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("bert-adamw", BertAdamW), ("bert-adam", BertAdam), ("sgd", torch.optim.SGD)],
)
def test_the_optimiser_is_the_named_one_with_the_recipes_groups(
    name: Optimiser, kind: type[torch.optim.Optimizer]
) -> None:
    student = build_student("uniter-tiny")
    method = resolve_method(config("uniter-base", method="plain"))
    distiller = Distiller(method.settings, {}, hidden_size=student.hidden_size, pooled_size=student.pooled_size)
    heads = {"answers": student.build_head("answers", 5)}
    start = StudentAtStart(student=student, heads=heads, settings=method.settings)
    model = FinetuneModel(start, distiller, task_loss="soft-target-bce")
    settings = dataclasses.replace(settle("uniter-base", "vqa"), optimiser=name)
    optimiser = build_optimizer(settings, model)
    assert type(optimiser) is kind
    rate_of = {id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]}
    named = dict(model.named_parameters())
    assert len(rate_of) == len(named)
    assert rate_of[id(named["heads.answers.2.weight"])] == (pytest.approx(8e-4), 0.01)
    assert rate_of[id(named["student.model.img_embeddings.img_layer_norm.weight"])] == (8e-5, 0.01)
    assert rate_of[id(named["student.model.embeddings.LayerNorm.weight"])] == (8e-5, 0.0)
    slow = build_optimizer(dataclasses.replace(settings, head_lr_scale=1.0), model, student_scale=0.1)
    assert sum(len(group["params"]) for group in slow.param_groups) == len(named)
    slow_rate_of = {id(p): group["lr"] for group in slow.param_groups for p in group["params"]}
    assert slow_rate_of[id(named["heads.answers.2.weight"])] == 8e-5
    assert slow_rate_of[id(named["student.model.embeddings.LayerNorm.weight"])] == pytest.approx(8e-6)


def test_rates_warm_up_and_fall_as_the_recipe_says() -> None:
    uniter = settle("uniter-base", "vcr")
    assert [rate_factor(uniter, step, num_steps=1000) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1.0])
    assert rate_factor(uniter, 549, num_steps=1000) == pytest.approx(0.5)
    steps = settle("vl-bert-base", "vcr", num_labelled=64_000)
    factors = [rate_factor(steps, step, num_steps=20_000) for step in (499, 5000, 13_999, 18_000)]
    assert factors == pytest.approx([0.5, 1.0, 0.1, 0.01])
    # A budget shorter than VL-BERT's 1000 steps of warming up spends a tenth of it.
    assert rate_factor(steps, 9, num_steps=100) == pytest.approx(1.0)


@pytest.mark.parametrize(("num_steps", "warmup_fraction"), [(1, 0.1), (10, 0.0), (20, 0.25), (300, 0.1)])
def test_the_learning_rate_rises_to_its_peak_and_falls_but_never_rests(
    num_steps: int, warmup_fraction: float
) -> None:
    settings = dataclasses.replace(settle("modernvbert", "vcr"), warmup=warmup_fraction)
    factors = [rate_factor(settings, step, num_steps=num_steps) for step in range(num_steps)]
    peak = max(1, round(num_steps * warmup_fraction)) - 1
    assert factors[peak] == 1.0 == max(factors)
    assert min(factors) > 0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def groups_by_name(student: str, settings: TrainingSettings) -> dict[str, tuple[float, float]]:
    """Return, by parameter of a tiny student and its head, the scale of its rate and its weight decay."""
    built = build_student(student)
    head = {f"head.{name}": value for name, value in built.build_head("answers", 11).named_parameters()}
    encoder = dict(built.named_parameters())
    name_of = {id(value): name for name, value in (encoder | head).items()}
    groups = parameter_groups(encoder, head, settings)
    scale_and_decay = {
        name_of[id(value)]: (round(group["lr"] / settings.learning_rate, 6), group["weight_decay"])
        for group in groups
        for value in group["params"]
    }
    assert sorted(scale_and_decay) == sorted(encoder | head)
    return scale_and_decay


def test_meter_has_three_learning_rates_and_decays_clips_norms() -> None:
    groups = groups_by_name("meter-tiny", settle("meter", "vqa"))
    assert set(groups.values()) == {(scale, decay) for scale in (1.0, 5.0, 50.0) for decay in (0.0, 0.01)}
    assert groups["vision.post_layernorm.weight"][1] == 0.01
    assert groups["text.embeddings.LayerNorm.weight"][1] == 0.0
    assert groups["cross_modal.token_type_embeddings.weight"][0] == 1.0
    assert groups["cross_modal.cross_modal_text_pooler.dense.weight"][0] == 5.0


def test_vilt_spares_the_transformers_norms_and_decays_the_heads() -> None:
    groups = groups_by_name("vilt-tiny", settle("vilt", "vqa"))
    assert groups["model.encoder.layer.0.layernorm_before.weight"][1] == 0.0
    assert groups["model.layernorm.weight"][1] == 0.0
    assert groups["head.1.weight"][1] == 0.01


def test_visualberts_gradients_are_clipped_parameter_by_parameter(small_corpus: Any, tmp_path: Path) -> None:
    """A bound far below its optimiser's eps leaves no step; the bound of 1 that the recipe states does."""
    moved = {}
    for name, recipe in (("recipe", {}), ("held", {"clip_each": 1e-12})):
        small_corpus.run(
            tmp_path / name,
            student="visualbert-tiny",
            method="plain",
            cache=(),
            num_steps=2,
            batch_size=2,
            learning_rate=1e-3,
            recipe={"weight_decay": 0.0, **recipe},
        )
        torch.manual_seed(0)
        start = build_student("visualbert-tiny").state_dict()
        trained = load_file(tmp_path / name / "model.safetensors")
        moved[name] = max(float((trained[key] - value).abs().max()) for key, value in start.items())
    assert moved["held"] < 1e-7 < 1e-4 < moved["recipe"]
