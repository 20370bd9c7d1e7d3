"""Resolving a run from its options, the recipe of its student and the size of its training data.

| method         | teachers | words            | weights  | steps | adapt stage learns |
|----------------|----------|------------------|----------|-------|-------------------|
| plain          | no       | -                | -        | one   | -                 |
| plain-two-step | no       | -                | -        | two   | contrast          |
| naive-kd       | yes      | all              | uniform  | one   | -                 |
| advl           | yes      | adaptive         | ratio    | two   | distillation      |

Every method has the same finetune stage: the same number of optimiser steps on the same examples in the same order.
Two-stage methods also share the budget and the inputs of the adapt stage. An explicit option overrides the default of
the method; this is how ablations are named.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from advl_pipeline.base.configuration import option_values
from advl_pipeline.base.errors import ConfigError, advise, ineffective
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.words import KnownWords
from advl_pipeline.distillation.settings import ADAPT_STEPS, DistillationSettings
from advl_pipeline.training.config import DEFAULT_EPOCHS, MOST_EPOCHS, FinetuneConfig, TrainingSettings
from advl_pipeline.training.recipes import (
    ChosenRecipe,
    choose_recipe,
    resolve_settings,
    steps_of_epochs,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A resolved run: the options, and everything that follows from them.

    `settings` contains the hyperparameters with their origins; `method` says how the teachers are used.
    `world_size` is the number of training processes. `stops_early` says that the run may end before its last step.
    `known` are the words that the student's pretraining taught, by a list or a record, for a method that reads them.
    """

    config: FinetuneConfig
    chosen: ChosenRecipe
    settings: TrainingSettings
    method: ResolvedMethod
    world_size: int = 1
    stops_early: bool = False
    known: KnownWords = field(default_factory=KnownWords)

    @property
    def num_steps(self) -> int:
        """Return the total number of optimiser steps of both stages."""
        return self.method.num_adapt_steps + self.settings.num_steps

    def steps_of(self, stage: str) -> range:
        """Return the step numbers of a stage, adapt or finetune, as they are logged."""
        num_adapt = self.method.num_adapt_steps
        return range(num_adapt) if stage == "adapt" else range(num_adapt, self.num_steps)


def resolve_run(
    config: FinetuneConfig,
    method: ResolvedMethod,
    *,
    kind: str,
    num_labelled: int,
    is_published: bool = False,
    world_size: int = 1,
    stops_early: bool = False,
) -> Run:
    """Resolve a run.

    Args:
        method: as `resolve_method` returns it for this configuration.
        kind: head of the task (`head_name`).
        is_published: the data are in a published format, for which the recipe's number of steps was chosen.
        stops_early: whether the run may end before its last step, so that the default is more epochs.

    Raises:
        ConfigError: the options contradict each other or the recipe.
    """
    chosen = choose_recipe(config.student, kind, config.optimisation.recipe)
    settings = resolve_settings(
        config,
        chosen,
        kind=kind,
        num_labelled=num_labelled,
        is_published=is_published,
        world_size=world_size,
        usual_epochs=MOST_EPOCHS if stops_early else DEFAULT_EPOCHS,
    )
    num_together = settings.batch_size // (settings.accumulate * world_size)
    if method.settings.weight_shuffle and settings.batch_unit == "examples" and num_together < 2:
        raise ConfigError(
            "--weight-shuffle needs at least two examples in a micro-batch.",
            where="--weight-shuffle",
            next_command="--accumulate with fewer micro-batches, or --batch-size with more examples",
        )
    return Run(
        config=config,
        chosen=chosen,
        settings=settings,
        method=method,
        world_size=world_size,
        # Batches that count tokens have no epochs to be the maximum of.
        stops_early=stops_early and settings.batch_unit == "examples",
    )


_DEFAULTS: dict[str, dict[str, Any]] = {
    name: dict(zip(("teachers", "selection", "weighting", "stages", "adapt_objective"), row, strict=True))
    for name, row in {
        "plain": (False, "all", "uniform", "one", "contrastive"),
        "plain-two-step": (False, "all", "uniform", "two", "contrastive"),
        "naive-kd": (True, "all", "uniform", "one", "distil-only"),
        "advl": (True, "adaptive", "ratio", "two", "distil-only"),
    }.items()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedMethod:
    """The method with all of its options resolved."""

    uses_teachers: bool
    settings: DistillationSettings
    num_adapt_steps: int

    @property
    def reads_words(self) -> bool:
        """Whether it depends on what the student's pretraining taught: by teachers, an anchor or its own answers."""
        anchors = self.num_adapt_steps > 0 and self.settings.anchors
        asks_itself = self.settings.asks_itself and self.settings.answer_weight > 0
        return self.uses_teachers or anchors or asks_itself


def resolve_method(config: FinetuneConfig) -> ResolvedMethod:
    """Fill in the options that follow the method.

    Raises:
        ConfigError: options contradict each other.
    """
    defaults = _DEFAULTS[config.method]
    two_stages = takes_two_stages(config)
    if defaults["teachers"] and not config.cache:
        words = ["advl", "extract", "--teacher", "NAME", "--dataset", config.dataset, "--split", config.split]
        cache = ["--cache", f"caches/NAME/{dataset_label(config.dataset)}/{config.split}"]
        raise ConfigError(
            f"Method {config.method} needs a teacher cache.",
            next_command=advise(words, note="then the same command with its cache", again=cache),
        )
    objective = config.adapt.adapt_objective or defaults["adapt_objective"]
    learns_answers = two_stages and (defaults["teachers"] or config.adapt.asks_itself)
    if two_stages and not defaults["teachers"] and objective != "contrastive" and not learns_answers:
        raise ConfigError(
            f"The adapt stage of {config.method} has nothing to learn.",
            why=f"adapt-objective is {objective}, which learns from teachers alone",
        )
    if config.adapt.answer_weight and not learns_answers:
        raise ineffective(
            "--answer-weight", why=f"{config.method} has no teacher" if two_stages else "there is no adapt stage"
        )
    names = {field.name for field in dataclasses.fields(DistillationSettings)}
    options = {name: value for name, value in option_values(config).items() if name in names}
    decided = {name: options[name] or defaults[name] for name in ("selection", "weighting", "adapt_objective")}
    if config.adapt.answer_weight is None:
        has_words = config.distill.pathway != "vision" or config.adapt.asks_itself
        decided["answer_weight"] = float(learns_answers and has_words and not config.hide_picture)
    method = ResolvedMethod(
        uses_teachers=defaults["teachers"],
        settings=DistillationSettings(**{**options, **decided}),
        num_adapt_steps=adapt_steps(config) if two_stages else 0,
    )
    if config.hide_picture:
        _check_hidden_picture(method, confidence=config.confidence)
    return method


def planned_steps(config: FinetuneConfig) -> int:
    """Return the planned number of optimiser steps; a recipe's own number is known only with its data."""
    return finetune_steps(config) + (adapt_steps(config) if takes_two_stages(config) else 0)


def adapt_steps(config: FinetuneConfig) -> int:
    """Return the steps of an adapt stage; few inputs of your own may end it earlier (`inputs.within_passes`)."""
    return ADAPT_STEPS if config.adapt.adapt_steps is None else config.adapt.adapt_steps


def takes_two_stages(config: FinetuneConfig) -> bool:
    """Return whether a run has an adapt stage."""
    return (config.adapt.stages or _DEFAULTS[config.method]["stages"]) == "two"


def finetune_steps(config: FinetuneConfig) -> int:
    """Return the number of steps of the finetune stage only, if the options determine it."""
    options, shots = config.optimisation, config.shots
    if options.num_steps is not None or shots is None:
        return int(options.num_steps or TrainingSettings.num_steps)
    batch_size = options.batch_size or TrainingSettings.batch_size
    return steps_of_epochs(options.epochs, num_labelled=shots, batch_size=min(shots, batch_size))


def _check_hidden_picture(method: ResolvedMethod, *, confidence: str) -> None:
    """Refuse options that would reveal pictures to a student whose picture is hidden.

    The confidence of a text probe depends on texts only. Its folds keep the questions on one picture together, which
    reveals nothing of the picture's content.

    Raises:
        ConfigError: an option uses pictures; the message lists all of them and how to disable each.
    """
    settings, uses_teachers = method.settings, method.uses_teachers
    contrasts = method.num_adapt_steps > 0 and settings.adapt_objective == "contrastive"
    by_picture = settings.weighting != "uniform" and confidence in ("zero-shot", "bridge")
    shown = (
        (
            contrasts,
            "the contrast of the adapt stage pulls texts to their pictures",
            "--adapt-objective distil-only" if uses_teachers else "--stages one",
        ),
        (settings.pathway != "text", "the vision pathway teaches visual states", "--pathway text"),
        (settings.selection == "adaptive", "--selection adaptive looks words up in the picture", "--selection prior"),
        (by_picture, f"--confidence {confidence} weighs by what the picture shows", "--confidence probe"),
        (settings.answer_weight > 0, "--answer-weight names what the picture shows", "--answer-weight 0"),
    )
    if seen := [(why, remedy) for sees, why, remedy in (shown if uses_teachers else shown[:1]) if sees]:
        raise ConfigError(
            "--hide-picture excludes options by which a student learns from pictures.",
            where="--hide-picture",
            why="; ".join(reason for reason, _ in seen),
            next_command=f"add {' '.join(remedy for _, remedy in seen)}, or leave out --hide-picture",
        )
