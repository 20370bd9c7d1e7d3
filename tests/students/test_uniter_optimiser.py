"""UNITER's parameter groups, schedule and AdamW reproduce six optimiser steps of the original."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from references import ASSETS, UniterForVqa, reference
from torch import nn

from advl_pipeline.base.configuration import build_config
from advl_pipeline.training.config import FinetuneConfig, TrainingSettings
from advl_pipeline.training.optimiser import BertAdamW, parameter_groups, rate_factor
from advl_pipeline.training.recipes import choose_recipe, resolve_settings
from advl_pipeline.training.targets import soft_target_bce


@pytest.fixture
def log() -> dict[str, object]:
    content: dict[str, object] = json.loads((ASSETS / "train" / "uniter_adamw_6steps.json").read_text())
    return content


@pytest.fixture
def recipe() -> TrainingSettings:
    config = build_config(FinetuneConfig, {"dataset": "vqa-v2", "output": "run", "student": "uniter-base"})
    settings = resolve_settings(config, choose_recipe("uniter-base", "vqa", "auto"), task="vqa", num_labelled=1000)
    return dataclasses.replace(settings, learning_rate=0.008, warmup=3 / 12)


def test_schedule_equals_the_original(log: dict[str, list[float]], recipe: TrainingSettings) -> None:
    rates = [recipe.learning_rate * rate_factor(recipe, step - 1, num_steps=12) for step in range(15)]
    assert rates == pytest.approx(log["lr_schedule"], rel=1e-12)


def grouped(model: UniterForVqa, recipe: TrainingSettings) -> list[dict[str, Any]]:
    parameters = dict(model.named_parameters())
    head = {name: value for name, value in parameters.items() if name.startswith("vqa_output")}
    encoder = {name: value for name, value in parameters.items() if name not in head}
    return parameter_groups(encoder, head, recipe)


def test_parameter_groups_equal_the_original(log: dict[str, list[list[str]]], recipe: TrainingSettings) -> None:
    model = UniterForVqa()
    name_of = {id(value): name for name, value in model.named_parameters()}
    groups = grouped(model, recipe)
    names = [[name_of[id(value)] for value in group["params"]] for group in groups]
    assert names == log["param_groups"]
    assert [group["lr"] / recipe.learning_rate for group in groups] == [10.0, 10.0, 1.0, 1.0]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.01, 0.0]
    assert "uniter.img_embeddings.img_layer_norm.weight" in names[2]


def test_six_steps_give_the_original_weights(
    log: dict[str, list[dict[str, float]]], recipe: TrainingSettings
) -> None:
    arrays = reference("uniter/uniter_tiny_vqa.npz")
    model = UniterForVqa.of_reference(arrays)
    optimiser = BertAdamW(grouped(model, recipe), recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)
    peak = [group["lr"] for group in optimiser.param_groups]
    for step, expected in enumerate(log["log"], start=1):
        loss = soft_target_bce(model(arrays), arrays["in/targets"])
        loss.backward()
        for group, rate in zip(optimiser.param_groups, peak, strict=True):
            group["lr"] = rate * rate_factor(recipe, step - 1, num_steps=12)
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        assert loss.item() == pytest.approx(expected["loss"], abs=2e-4)
        assert norm.item() == pytest.approx(expected["grad_norm"], rel=2e-4)
        optimiser.step()
        optimiser.zero_grad()
    final = reference("train/uniter_adamw_6steps.npz")
    differences = {
        name: (value - final[f"final/{name}"]).abs().max().item() for name, value in model.state_dict().items()
    }
    # The softmax ignores a bias of the keys: its true gradient is 0, and Adam scales up what rounding leaves of it.
    of_keys = {name: value for name, value in differences.items() if name.endswith("attention.self.key.bias")}
    assert len(of_keys) == 3
    assert max(of_keys.values()) < 2e-4
    assert max(value for name, value in differences.items() if name not in of_keys) < 2e-5
