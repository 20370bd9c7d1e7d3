"""Methods by name: what each control and ADVL itself do with the teachers.

| method         | teachers | words            | weights  | steps |
|----------------|----------|------------------|----------|-------|
| plain          | no       | -                | -        | one   |
| plain-two-step | no       | -                | -        | two   |
| naive-kd       | yes      | all              | uniform  | one   |
| advl           | yes      | adaptive         | ratio    | two   |

Every method trains for the same number of optimiser steps on the same examples in the same order. An option given
explicitly wins over the method's default, which is how ablations are named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.errors import ConfigError
from advl_pipeline.training.config import FinetuneConfig

_DEFAULTS: dict[str, dict[str, Any]] = {
    "plain": {"teachers": False, "selection": "all", "weighting": "uniform", "steps": "one"},
    "plain-two-step": {"teachers": False, "selection": "all", "weighting": "uniform", "steps": "two"},
    "naive-kd": {"teachers": True, "selection": "all", "weighting": "uniform", "steps": "one"},
    "advl": {"teachers": True, "selection": "adaptive", "weighting": "ratio", "steps": "two"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedMethod:
    """A method with every option decided."""

    uses_teachers: bool
    steps: Literal["one", "two"]
    settings: DistillationSettings
    num_adapt_steps: int
    num_finetune_steps: int


def resolve_method(config: FinetuneConfig, *, num_steps: int) -> ResolvedMethod:
    """Fill the options that follow the method, and split the budget over the two steps.

    Args:
        config: of the run.
        num_steps: optimiser steps of both steps together.

    Raises:
        ConfigError: options that contradict each other.
    """
    defaults = _DEFAULTS[config.method]
    steps = config.steps or defaults["steps"]
    if num_steps < 2:
        raise ConfigError("num-steps must be at least 2.", why=f"got {num_steps!r}")
    if defaults["teachers"] and not config.cache:
        raise ConfigError(
            f"Method {config.method} needs a teacher cache.",
            next_command=f"advl extract --teacher NAME --dataset {config.dataset} --split {config.split}, "
            "then advl finetune --cache DIR ...",
        )
    if config.live_weights and not config.live:
        raise ConfigError(
            "Weights of a live teacher are given, but teachers are read from caches.",
            where="--live-weights",
            next_command="add --live, or leave out --live-weights",
        )
    if steps == "two" and not defaults["teachers"] and config.adapt_objective != "contrastive":
        raise ConfigError(
            f"The adapt step of {config.method} has nothing to learn.",
            why=f"adapt-objective is {config.adapt_objective}, which learns from teachers alone",
        )
    num_adapt = max(1, round(num_steps * config.adapt_fraction)) if steps == "two" else 0
    method = ResolvedMethod(
        uses_teachers=defaults["teachers"],
        steps=steps,
        settings=DistillationSettings(
            pathway=config.pathway,
            distance=config.distance,
            vision_target=config.vision_target,
            teacher_balance=config.teacher_balance,
            teacher_weights=teacher_weights(config.teacher_weight),
            selection=config.selection or defaults["selection"],
            selection_alpha=config.selection_alpha,
            selection_rho=config.selection_rho,
            candidates=config.candidates,
            text_pass=config.text_pass,
            weighting=config.weighting or defaults["weighting"],
            weight_max=config.weight_max,
            weight_normalise=config.weight_normalise,
            weight_shuffle=config.weight_shuffle,
            adapt_objective=config.adapt_objective,
        ),
        num_adapt_steps=num_adapt,
        num_finetune_steps=num_steps - num_adapt,
    )
    if config.hide_picture:
        _check_hidden_picture(method, confidence=config.confidence)
    return method


def _check_hidden_picture(method: ResolvedMethod, *, confidence: str) -> None:
    """Refuse what would show pictures to a student that is to see none.

    The confidence of a probe of texts is of texts alone; that its folds keep the questions on one picture together
    tells nothing of what the picture shows.

    Raises:
        ConfigError: with everything that sees pictures, and the options that leave it out.
    """
    settings = method.settings
    seen: list[tuple[str, str]] = []
    if method.steps == "two" and settings.adapt_objective == "contrastive":
        contrast = "the contrast of the adapt step pulls texts to their pictures"
        seen.append((contrast, "--adapt-objective distil-only" if method.uses_teachers else "--steps one"))
    if method.uses_teachers:
        if settings.pathway != "text":
            seen.append(("the vision pathway teaches visual states", "--pathway text"))
        if settings.selection in ("adaptive", "visual"):
            seen.append((f"--selection {settings.selection} looks words up in the picture", "--selection prior"))
        if settings.weighting != "uniform" and confidence in ("probe-joint", "zero-shot"):
            seen.append((f"--confidence {confidence} weighs by what the picture shows", "--confidence probe"))
    if seen:
        raise ConfigError(
            "These options would teach a student from pictures that is to see none.",
            where="--hide-picture",
            why="; ".join(reason for reason, _ in seen),
            next_command=f"add {' '.join(remedy for _, remedy in seen)}, or leave out --hide-picture",
        )


def teacher_weights(texts: Sequence[str]) -> dict[str, float]:
    """Read weights of teachers given as NAME=NUMBER.

    Raises:
        ConfigError: another form, a number below 0 or not finite, or one teacher twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        # A name may hold an equals sign (`hf:` takes any), a number may not.
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not 0.0 <= value < math.inf:
            raise ConfigError(
                "A teacher's weight is not NAME=NUMBER, with a number of at least 0.", why=f"got {text!r}"
            )
        if name in found:
            raise ConfigError("A teacher has two weights.", where=name)
        found[name] = value
    return found
