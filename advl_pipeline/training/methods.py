"""Methods by name: what each control and ADVL itself do with the teachers.

| method         | teachers | words            | weights  | steps | adapt step learns |
|----------------|----------|------------------|----------|-------|-------------------|
| plain          | no       | -                | -        | one   | -                 |
| plain-two-step | no       | -                | -        | two   | contrast          |
| naive-kd       | yes      | all              | uniform  | one   | -                 |
| advl           | yes      | adaptive         | ratio    | two   | distillation      |

Every method has the same finetune step: as many optimiser steps on the same examples in the same order. Methods of
two steps share the budget and the inputs of the adapt step too. An option given explicitly wins over the method's
default, which is how ablations are named.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from advl_pipeline.configuration import fallbacks, option_values
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.training.config import FinetuneConfig

_DEFAULTS: dict[str, dict[str, Any]] = {
    name: dict(zip(("teachers", "selection", "weighting", "steps", "adapt_objective"), row, strict=True))
    for name, row in {
        "plain": (False, "all", "uniform", "one", "contrastive"),
        "plain-two-step": (False, "all", "uniform", "two", "contrastive"),
        "naive-kd": (True, "all", "uniform", "one", "distil-only"),
        "advl": (True, "adaptive", "ratio", "two", "distil-only"),
    }.items()
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
    """Fill the options that follow the method, and give each step its budget.

    Args:
        num_steps: optimiser steps of the finetune step.

    Raises:
        ConfigError: options that contradict each other.
    """
    defaults = _DEFAULTS[config.method]
    steps: Literal["one", "two"] = "two" if takes_two_steps(config) else "one"
    if defaults["teachers"] and not config.cache:
        raise ConfigError(
            f"Method {config.method} needs a teacher cache.",
            next_command=advise(
                ["advl", "extract", "--teacher", "NAME", "--dataset", config.dataset, "--split", config.split],
                note="then the same command with its cache",
                again=["--cache", f"caches/NAME/{dataset_label(config.dataset)}/{config.split}"],
            ),
        )
    objective = config.adapt.adapt_objective or defaults["adapt_objective"]
    learns_answers = steps == "two" and (defaults["teachers"] or config.adapt.answers_of == "student")
    if steps == "two" and not defaults["teachers"] and objective != "contrastive" and not learns_answers:
        raise ConfigError(
            f"The adapt step of {config.method} has nothing to learn.",
            why=f"adapt-objective is {objective}, which learns from teachers alone",
        )
    if config.adapt.answer_weight and not learns_answers:
        raise ConfigError(
            "Nobody learns to answer as a teacher would here.",
            where="--answer-weight",
            why="there is no adapt step" if steps == "one" else f"{config.method} has no teacher",
            next_command="leave out --answer-weight, or use --method advl",
        )
    names = {field.name for field in dataclasses.fields(DistillationSettings)}
    options = {name: value for name, value in option_values(config).items() if name in names}
    decided = {name: options[name] or defaults[name] for name in ("selection", "weighting", "adapt_objective")}
    if config.adapt.answer_weight is None:
        has_words = config.distill.pathway != "vision" or config.adapt.answers_of == "student"
        decided["answer_weight"] = float(learns_answers and has_words and not config.hide_picture)
    weights = teacher_weights(config.teacher_weight)
    method = ResolvedMethod(
        uses_teachers=defaults["teachers"],
        steps=steps,
        settings=DistillationSettings(**{**options, **decided, "teacher_weights": weights}),
        num_adapt_steps=config.adapt.adapt_steps if steps == "two" else 0,
        num_finetune_steps=num_steps,
    )
    if config.hide_picture:
        _check_hidden_picture(method, confidence=config.confidence)
    return method


def planned_steps(config: FinetuneConfig) -> int:
    """Return the optimiser steps that a run is planned for; a recipe's own number is known only with its data."""
    return finetune_steps(config) + (config.adapt.adapt_steps if takes_two_steps(config) else 0)


def takes_two_steps(config: FinetuneConfig) -> bool:
    """Return whether a run has an adapt step."""
    return (config.adapt.steps or _DEFAULTS[config.method]["steps"]) == "two"


def finetune_steps(config: FinetuneConfig) -> int:
    """Return the steps of the finetune step alone, as far as the options tell."""
    return (
        int(fallbacks(FinetuneConfig)["num_steps"])
        if config.optimisation.num_steps is None
        else config.optimisation.num_steps
    )


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
        if settings.selection == "adaptive":
            seen.append(("--selection adaptive looks words up in the picture", "--selection prior"))
        if settings.weighting != "uniform" and confidence in ("zero-shot", "bridge"):
            seen.append((f"--confidence {confidence} weighs by what the picture shows", "--confidence probe"))
        if settings.answer_weight > 0:
            seen.append(("--answer-weight names what the picture shows", "--answer-weight 0"))
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
