"""VILLA's loop equals the original in five variants: losses, norms, last perturbations, summed gradients."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from closeness import assert_near, largest
from references import ASSETS, UniterForVqa, part, reference

from advl_pipeline.students.interface import Perturbation
from advl_pipeline.training.adversarial import adversarial_passes, symmetric_kl
from advl_pipeline.training.config import AdversarialConfig
from advl_pipeline.training.targets import soft_target_bce

VARIANTS = ("text", "image", "both", "both_linf", "both_l2max")
LEARNING_RATE, KL_WEIGHT = 0.1, 1.5


def norms(delta: torch.Tensor | None) -> list[float]:
    return [0.0] * 3 if delta is None else delta.flatten(1).norm(dim=1).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant: str) -> None:
    arrays = reference("uniter/uniter_tiny_vqa.npz")
    model = UniterForVqa.of_reference(arrays)
    described: dict[str, Any] = json.loads((ASSETS / "train" / "villa_steps.json").read_text())[variant]
    settings = described["kw"]
    uses_text, uses_image = "text" in settings["modality"], "image" in settings["modality"]
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
            norm=settings.get("norm", "l2"),
            max_norm=settings.get("maxn", 0.0),
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
