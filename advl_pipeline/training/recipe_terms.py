"""Words that recipes and options share; light to import, so that the command line can offer them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from advl_pipeline.configuration import Configuration, option

TaskLoss = Literal[
    "softmax-choice", "sigmoid-choice", "two-way-choice", "soft-target-bce", "soft-target-kl", "answer-lm"
]
"""Losses of `targets.py`."""

Optimiser = Literal["adamw", "bert-adamw", "bert-adam", "sgd"]
"""torch's AdamW; AdamW and Adam without bias correction as BERT's family runs them (`optimiser.py`)."""

LearningRateSchedule = Literal["linear", "steps", "constant", "linear-nonzero"]
"""Learning rate after warming up: three as the originals have it, and ADVL's own `linear-nonzero`, which is linear up
and down, with neither the first nor the last step at rate 0."""

PRETRAINED_LEARNING_RATE = 5e-5
"""Rate of a student with pretrained weights of whose family no recipe is known: the highest that BERT's authors
finetuned at. The rate without weights is meant for small students that start at random; it undoes a pretraining."""

AdversarialModality = Literal["none", "text", "image", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig:
    """VILLA's numbers. A learning rate of 0 leaves that modality alone; `max_norm` 0 means no projection."""

    text_learning_rate: float = 0.0
    visual_learning_rate: float = 0.0
    num_steps: int = 3
    kl_weight: float = 1.5
    norm: Literal["l2", "linf"] = "l2"
    max_norm: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions(Configuration):
    """How a student is finetuned; what is not given is the recipe's, else what its declaration says."""

    title: ClassVar[str] = "Optimiser"

    recipe: str = option(
        "auto",
        help="How the student's authors finetuned it: auto (the published recipe where there is one), none, or a "
        "TOML file of its keys. An option given here wins over it.",
        identity="content",
    )
    num_steps: int | None = option(
        None,
        help="Optimiser steps of the finetune step [default: the recipe's at full data, else {otherwise}].",
        minimum=1,
        paces=False,
        otherwise=300,
    )
    batch_size: int | None = option(
        None, help="Examples per optimiser step [default: the recipe's, else {otherwise}].", minimum=1, otherwise=16
    )
    batch_tokens: int | None = option(
        None,
        help="Padded tokens of a micro-batch, in place of a number of examples [default: the recipe's].",
        minimum=1,
        rare=True,
    )
    accumulate: int | None = option(
        None,
        help="Micro-batches that one optimiser step is split into [default: the recipe's, else {otherwise}].",
        minimum=1,
        otherwise=1,
        rare=True,
    )
    optimiser: Optimiser | None = option(
        None, help="Optimiser [default: as the learning rate's, else {otherwise}].", otherwise="adamw", rare=True
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate of the student [default: the recipe's, else that of its family on another task, "
        f"else {PRETRAINED_LEARNING_RATE:g} with --init and {{otherwise}} without].",
        above=0,
        paces=False,
        otherwise=5e-4,
    )
    head_lr_scale: float | None = option(
        None,
        help="Learning rate of head and projections relative to the student's [default: the recipe's, else "
        "{otherwise}].",
        minimum=0,
        paces=False,
        otherwise=1.0,
        rare=True,
    )
    weight_decay: float | None = option(
        None,
        help="Weight decay [default: the recipe's, else {otherwise}].",
        minimum=0,
        paces=False,
        otherwise=0.01,
        rare=True,
    )
    schedule: LearningRateSchedule | None = option(
        None,
        help="Learning rate after warming up [default: the recipe's, else {otherwise}].",
        paces=False,
        otherwise="linear-nonzero",
        rare=True,
    )
    warmup_fraction: float | None = option(
        None,
        help="Share of each step's budget spent warming up the learning rate [default: the recipe's, else "
        "{otherwise}].",
        minimum=0,
        below=1,
        paces=False,
        otherwise=0.1,
        rare=True,
    )
    clip_norm: float | None = option(
        None,
        help="Gradient norm to clip at; 0 turns clipping off [default: the recipe's, else {otherwise}].",
        minimum=0,
        paces=False,
        otherwise=2.0,
        rare=True,
    )
    task_loss: TaskLoss | None = option(
        None,
        help="Loss of the task [default: the recipe's, else softmax-choice, and soft-target-bce for VQA].",
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class AdversarialOptions(Configuration):
    """VILLA's adversarial finetuning; what is not given is the recipe's."""

    title: ClassVar[str] = "Adversarial finetuning"

    adversarial: AdversarialModality | None = option(
        None, help="VILLA's adversarial finetuning: what is perturbed [default: the recipe's].", rare=True
    )
    adversarial_norm: Literal["l2", "linf"] | None = option(
        None, help="Norm of its gradient steps and of the ball [default: the recipe's, else l2].", rare=True
    )
    adversarial_max_norm: float | None = option(
        None,
        help="Radius of the ball that perturbations stay in, 0 for none [default: the recipe's, else 0].",
        minimum=0,
        rare=True,
    )
    adversarial_learning_rate: float | None = option(
        None, help="Step size of the perturbations [default: the recipe's, else 1e-3].", above=0, rare=True
    )
    adversarial_steps: int | None = option(
        None, help="Adversarial passes per micro-batch [default: the recipe's, else 3].", minimum=1, rare=True
    )
    adversarial_kl_weight: float | None = option(
        None,
        help="Weight of the divergence from the clean pass [default: the recipe's, else 1.5].",
        minimum=0,
        rare=True,
    )
