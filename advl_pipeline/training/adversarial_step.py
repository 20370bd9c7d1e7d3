"""One micro-batch of adversarial finetuning (VILLA): the passes of `training/adversarial.py` around the run's model.

The perturbed passes carry the task loss and the divergence, the clean pass carries the distillation: what a teacher
knows is asked of the student's clean states. That reading is ours; VILLA has no teachers.

Shapes: N sequences, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch
from advl_pipeline.training.adversarial import adversarial_passes, symmetric_kl
from advl_pipeline.training.finetune_model import LossTerms
from advl_pipeline.training.recipe_terms import AdversarialConfig


def require_perturbable(student: Student) -> None:
    """Refuse a student whose inputs cannot be perturbed.

    Raises:
        ConfigError: with the student's own reason where it has one.
    """
    refuse: Callable[[Perturbation], None] | None = getattr(student, "refuse_perturbation", None)
    if refuse is not None:
        refuse(Perturbation())
    if not hasattr(student, "zero_perturbation"):
        raise ConfigError(
            f"{student.name} cannot be finetuned adversarially.",
            why="it does not say what shapes its perturbations have (`zero_perturbation`)",
            next_command="choose a region student, such as villa-base",
        )


def adversarial_terms(
    run_model: Callable[..., LossTerms],
    student: Student,
    batch: StudentBatch,
    config: AdversarialConfig,
    *,
    is_two_way: bool,
    backward: Callable[..., None],
) -> LossTerms:
    """Run the passes of one micro-batch, with backward, and return what is to be logged.

    Args:
        run_model: the model on this micro-batch, given `perturbation` and whether it is `clean`.
        student: gives the perturbations' shapes.
        batch: its inputs.
        config: VILLA's numbers.
        is_two_way: logits are two per candidate, whose divergence VILLA averages instead of adding up.
        backward: called with a loss and `retain_graph`.
    """
    made: list[LossTerms] = []

    def forward(perturbation: Perturbation | None) -> torch.Tensor:
        made.append(run_model(perturbation=perturbation, clean=perturbation is None))
        compared = made[-1].compared
        assert compared is not None
        # Candidates that an example lacks score -inf, whose divergence is not a number.
        return compared.clamp(min=torch.finfo(compared.dtype).min)

    def step_back(loss: torch.Tensor, keep_graph: bool) -> None:
        distilled = [value for name, value in made[0].weighted.items() if name != "task"]
        if len(made) == 2:
            loss = torch.stack([loss, *distilled]).sum()
        backward(loss, retain_graph=keep_graph)

    make: Any = student
    _, passes = adversarial_passes(
        forward,
        lambda _: made[-1].weighted["task"],
        partial(symmetric_kl, reduction="mean" if is_two_way else "sum-classes"),
        make.zero_perturbation(batch, text=config.text_learning_rate > 0, visual=config.visual_learning_rate > 0),
        config,
        backward=step_back,
    )
    clean = made[0]
    clean.raw["task"] = torch.stack([item.task_loss for item in passes]).mean()
    clean.raw["divergence"] = torch.stack([item.divergence for item in passes]).mean()
    clean.weighted["task"] = clean.raw["task"]
    clean.weighted["divergence"] = config.kl_weight * clean.raw["divergence"]
    return clean
