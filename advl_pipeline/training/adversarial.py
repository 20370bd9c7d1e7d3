"""VILLA's adversarial finetuning with UNITER's modules, for any student that accepts perturbations.

One micro-batch costs one clean forward pass and K perturbed passes with backward. Parameter gradients accumulate
over the K passes ("free" training), so the optimiser steps once at the end. Follows zhegan27/VILLA 1d5bc2b,
`train_vqa_adv.py` and `train_vcr_adv.py`. The branch that alternates between modalities is left out, because no
published configuration uses it.

In a run, the perturbed passes carry the task loss and the divergence, and the clean pass carries the distillation:
teachers are compared with the student's clean states. That reading is ours; VILLA has no teachers.

Shapes: N sequences, L text tokens, E word embedding width, R visual tokens, F visual feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from advl_pipeline.students.abilities import Perturbable
from advl_pipeline.students.interface import Perturbation, StudentBatch
from advl_pipeline.training.config import AdversarialConfig
from advl_pipeline.training.step import LossTerms

SMALLEST_NORM = 1e-8


def symmetric_kl(
    clean_NK: torch.Tensor, perturbed_NK: torch.Tensor, *, reduction: Literal["sum-classes", "mean"]
) -> torch.Tensor:
    """Return KL(clean || perturbed) + KL(perturbed || clean) of softmax distributions.

    Summed over classes and averaged over sequences for VQA, SNLI-VE and NLVR2 ("sum-classes"); averaged over all
    entries for VCR's two logits ("mean"). The clean side keeps its gradient, as in the original.
    """
    log_clean, log_perturbed = torch.log_softmax(clean_NK, dim=-1), torch.log_softmax(perturbed_NK, dim=-1)
    terms_NK = (log_clean.exp() - log_perturbed.exp()) * (log_clean - log_perturbed)
    return terms_NK.sum(-1).mean() if reduction == "sum-classes" else terms_NK.mean()


def adversarial_passes(
    forward: Callable[[Perturbation | None], tuple[torch.Tensor, torch.Tensor]],
    start: Perturbation,
    config: AdversarialConfig,
    *,
    reduction: Literal["sum-classes", "mean"],
    backward: Callable[[torch.Tensor, bool], None],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Run the clean forward and the K perturbed passes; gradients accumulate in the parameters.

    Args:
        forward: task loss and logits under a perturbation, or clean with None.
        start: zero tensors of the perturbations' shapes; a modality that is None is not perturbed.
        reduction: of the divergence (`symmetric_kl`).
        backward: called with a loss, and whether to keep the graph.

    Returns:
        Task loss and divergence of each perturbed pass, detached scalars.
    """
    _, clean = forward(None)
    text, visual = _leaf(start.text_NLE), _leaf(start.visual_NRF)
    passes = []
    for index in range(config.num_steps):
        is_last = index == config.num_steps - 1
        task, logits = forward(Perturbation(text_NLE=text, visual_NRF=visual))
        distance = symmetric_kl(clean, logits, reduction=reduction)
        loss = (task + config.kl_weight * distance) / config.num_steps
        backward(loss, not is_last)
        passes.append((task.detach(), distance.detach()))
        if not is_last:
            text = _ascend(text, config.text_learning_rate, config)
            visual = _ascend(visual, config.visual_learning_rate, config)
    return passes


def _leaf(delta: torch.Tensor | None) -> torch.Tensor | None:
    return None if delta is None else delta.detach().clone().requires_grad_()


def _ascend(delta: torch.Tensor | None, learning_rate: float, config: AdversarialConfig) -> torch.Tensor | None:
    """Move along the normalised gradient of each sequence, then project onto the ball of `max_norm`."""
    if delta is None or learning_rate == 0.0:
        return delta
    gradient = delta.grad
    assert gradient is not None
    order = torch.inf if config.norm == "linf" else 2.0
    moved = delta.detach() + learning_rate * gradient / _norm(gradient, order).clamp(min=SMALLEST_NORM)
    if config.max_norm > 0:
        if config.norm == "linf":
            moved = moved.clamp(-config.max_norm, config.max_norm)
        else:
            size = _norm(moved, order)
            moved = torch.where(size > config.max_norm, moved * (config.max_norm / size), moved)
    return moved.requires_grad_()


def _norm(value: torch.Tensor, order: float) -> torch.Tensor:
    """Return one norm per sequence, shaped (N, 1, 1)."""
    size: torch.Tensor = torch.linalg.vector_norm(value, ord=order, dim=(1, 2), keepdim=True)
    return size


def adversarial_terms(
    run_model: Callable[..., LossTerms],
    student: Perturbable,
    batch: StudentBatch,
    config: AdversarialConfig,
    *,
    is_two_way: bool,
    backward: Callable[..., None],
) -> LossTerms:
    """Run the passes of one micro-batch, with backward, and return the terms for the log.

    Args:
        run_model: the model on this micro-batch, given `perturbation`, None for the clean pass.
        student: provides the perturbations' shapes.
        is_two_way: each candidate has two logits, whose divergence VILLA averages instead of summing.
        backward: called with a loss and `retain_graph`.
    """
    made: list[LossTerms] = []

    def forward(perturbation: Perturbation | None) -> tuple[torch.Tensor, torch.Tensor]:
        terms = run_model(perturbation=perturbation)
        made.append(terms)
        assert terms.compared is not None
        # Missing candidates of an example score -inf, whose divergence would be NaN.
        return terms.weighted["task"], terms.compared.clamp(min=torch.finfo(terms.compared.dtype).min)

    def step_back(loss: torch.Tensor, keep_graph: bool) -> None:
        distilled = [value for name, value in made[0].weighted.items() if name != "task"]
        if len(made) == 2:
            loss = torch.stack([loss, *distilled]).sum()
        backward(loss, retain_graph=keep_graph)

    passes = adversarial_passes(
        forward,
        student.zero_perturbation(batch, text=config.text_learning_rate > 0, visual=config.visual_learning_rate > 0),
        config,
        reduction="mean" if is_two_way else "sum-classes",
        backward=step_back,
    )
    clean = made[0]
    clean.raw["task"], clean.raw["divergence"] = (torch.stack(each).mean() for each in zip(*passes, strict=True))
    clean.weighted["task"] = clean.raw["task"]
    clean.weighted["divergence"] = config.kl_weight * clean.raw["divergence"]
    return clean
