"""UNITER and VILLA are trained as the originals are: buckets of tokens, six optimiser steps, adversarial passes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from closeness import assert_near, largest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import ASSETS, UniterForVqa, part, reference
from torch import nn

from advl_pipeline.base.configuration import build_config
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.training.adversarial import adversarial_passes, symmetric_kl
from advl_pipeline.training.batch_order import token_batches
from advl_pipeline.training.config import AdversarialConfig, FinetuneConfig, TrainingSettings
from advl_pipeline.training.optimiser import BertAdamW, parameter_groups, rate_factor
from advl_pipeline.training.recipes import choose_recipe, resolve_settings
from advl_pipeline.training.targets import soft_target_bce


def test_buckets_equal_the_original_sampler() -> None:
    case: dict[str, Any] = json.loads((ASSETS / "uniter_data" / "token_bucket_sampler.json").read_text())
    batches = token_batches(
        case["lens"],
        max_tokens=case["batch_size"],
        bucket_size=case["bucket_size"],
        seed=case["seed"],
        multiple=case["size_multiple"],
    )
    assert batches == case["batches_keep"]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=200),
    bucket_size=st.integers(8, 64),
    seed=st.integers(0, 5),
)
def test_every_item_once_and_no_batch_over_the_bound(lengths: list[int], bucket_size: int, seed: int) -> None:
    batches = token_batches(lengths, max_tokens=1000, bucket_size=bucket_size, seed=seed)
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))
    assert all(max(lengths[item] for item in batch) * len(batch) <= 1000 for batch in batches)


@pytest.fixture
def log() -> dict[str, object]:
    content: dict[str, object] = json.loads((ASSETS / "train" / "uniter_adamw_6steps.json").read_text())
    return content


@pytest.fixture
def recipe() -> TrainingSettings:
    config = build_config(FinetuneConfig, {"dataset": "vqa-v2", "output": "run", "student": "uniter-base"})
    resolved = resolve_settings(
        config, choose_recipe("uniter-base", "answers", "auto"), kind="answers", num_labelled=1000
    )
    return dataclasses.replace(resolved, learning_rate=0.008, warmup=3 / 12)


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


VARIANTS = ("text", "image", "both", "both_linf", "both_l2max")
LEARNING_RATE, KL_WEIGHT = 0.1, 1.5


def norms(delta: torch.Tensor | None) -> list[float]:
    return [0.0] * 3 if delta is None else delta.flatten(1).norm(dim=1).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_adversarial_passes_equal_the_original(variant: str) -> None:
    arrays = reference("uniter/uniter_tiny_vqa.npz")
    model = UniterForVqa.of_reference(arrays)
    described: dict[str, Any] = json.loads((ASSETS / "train" / "villa_steps.json").read_text())[variant]
    asked = described["kw"]
    uses_text, uses_image = "text" in asked["modality"], "image" in asked["modality"]
    seen: list[Perturbation] = []

    def forward(perturbation: Perturbation | None) -> tuple[torch.Tensor, torch.Tensor]:
        if perturbation is not None:
            seen.append(perturbation)
        logits = model(arrays, perturbation)
        return soft_target_bce(logits, arrays["in/targets"]), logits

    losses: list[float] = []
    kept: list[bool] = []

    def backward(loss: torch.Tensor, keep: bool) -> None:
        losses.append(float(loss.detach()))
        kept.append(keep)
        loss.backward(retain_graph=keep)

    passes = adversarial_passes(
        forward,
        Perturbation(
            text_NLE=torch.zeros(3, 12, 24) if uses_text else None,
            visual_NRF=torch.zeros(3, 9, 16) if uses_image else None,
        ),
        AdversarialConfig(
            text_learning_rate=LEARNING_RATE,
            visual_learning_rate=LEARNING_RATE,
            kl_weight=KL_WEIGHT,
            norm=asked.get("norm", "l2"),
            max_norm=asked.get("maxn", 0.0),
        ),
        reduction="sum-classes",
        backward=backward,
    )
    assert kept == [True, True, False]
    for (task_loss, divergence), loss, perturbation, expected in zip(
        passes, losses, seen, described["steps"], strict=True
    ):
        assert task_loss.item() == pytest.approx(expected["bce"], abs=2e-5)
        assert divergence.item() == pytest.approx(expected["kl"], abs=2e-5)
        assert loss == pytest.approx(expected["loss"], abs=2e-5)
        assert norms(perturbation.text_NLE) == pytest.approx(expected["txt_norm"], abs=2e-5)
        assert norms(perturbation.visual_NRF) == pytest.approx(expected["img_norm"], abs=2e-5)
    final = reference(f"train/villa_{variant}.npz")
    for value, name in ((seen[-1].text_NLE, "txt_delta"), (seen[-1].visual_NRF, "img_delta")):
        actual = torch.zeros_like(final[name]) if value is None else value.detach()
        assert_near(actual, final[name])
    compared = 0
    scale = largest(part(final, "grad/").values())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_near(parameter.grad, final[f"grad/{name}"], scale=scale, name=name)
            compared += 1
    assert compared == sum(key.startswith("grad/") for key in final)


def test_vcr_divergence_is_a_plain_mean_over_both_logits() -> None:
    torch.manual_seed(0)
    clean, perturbed = torch.randn(6, 2), torch.randn(6, 2)
    summed = symmetric_kl(clean, perturbed, reduction="sum-classes")
    torch.testing.assert_close(symmetric_kl(clean, perturbed, reduction="mean"), summed / 2)
    assert summed > 0
    assert symmetric_kl(clean, clean, reduction="mean").abs() < 1e-7
