"""What a run trains with, and where each number came from: ADVL's defaults, then the recipe, then the options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

from advl_pipeline.configuration import (
    build_config,
    check_ranges,
    config_to_dict,
    fallbacks,
    flag_of,
    option_values,
)
from advl_pipeline.datasets.registry import benchmark_of
from advl_pipeline.errors import ConfigError
from advl_pipeline.training.config import (
    PRETRAINED_LEARNING_RATE,
    AdversarialConfig,
    FinetuneConfig,
    TaskLoss,
)
from advl_pipeline.training.recipes import ChosenRecipe, FinetuningNumbers, Recipe

PLAIN = fallbacks(FinetuneConfig)
"""What stands for options that are left to a recipe, where there is none."""

ADVERSARIAL_LEARNING_RATE = 1e-3
"""VILLA's for VQA and SNLI-VE at size base."""

OURS = "ADVL's default"
OURS_FOR_PRETRAINED = "ADVL's default for a student that starts from --init"

RATES = (
    "optimiser", "learning_rate", "head_lr_scale", "lr_scales", "weight_decay", "no_decay", "betas", "eps",
    "momentum",
)  # fmt: skip
"""What a recipe of the same family on another task lends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings(FinetuningNumbers[Never]):
    """The decided numbers of one run.

    `batch_size` counts examples of an optimiser step over all processes, or padded tokens of one micro-batch;
    `accumulate` counts micro-batches of an optimiser step, per process for examples, over all processes for tokens.
    `max_text_tokens` leaves longer examples out of training, 0 for none. `loss_scale` multiplies every gradient
    (recipes that add up micro-batches instead of averaging). `sources` says where each field came from.
    """

    max_text_tokens: int
    loss_scale: float
    task_loss: TaskLoss
    adversarial: AdversarialConfig | None
    note: str
    sources: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return each setting with its value and source, and the note on the recipe, as plain JSON types."""
        plain = config_to_dict(self)
        described = {key: {"value": plain[key], "source": source} for key, source in self.sources.items()}
        return {"recipe": self.note, "settings": described}

    def step_line(self, num_processes: int) -> str:
        """Return one line for people: how large the batch of an optimiser step is, and who computes it."""
        on = "" if num_processes == 1 else f" on {num_processes} processes"
        if self.batch_unit == "tokens":
            return f"global batch: {self.accumulate} micro-batches of at most {self.batch_size} tokens{on}"
        cut = "" if self.accumulate == 1 else f", in {self.accumulate} micro-batches"
        return f"global batch: {self.batch_size} examples{on}{cut}"

    def line(self) -> str:
        """Return one line for people: which recipe, and what the options changed of it."""
        flags = {source: key for key, source in reversed(list(self.sources.items())) if source.startswith("--")}
        # A number that was cut says so itself.
        given = [
            flag if " " in flag else f"{flag} {getattr(self, key)}"
            for flag, key in flags.items()
            if flag != "--adversarial"
        ]
        adversarial = "" if self.adversarial is None else f", adversarial ({self.adversarial.num_steps} passes)"
        return (
            f"{self.note}; given: {', '.join(sorted(given)) or 'nothing'}; "
            f"{self.task_loss}, {self.optimiser} at {self.learning_rate:.2g}{adversarial}, {self.num_steps} steps"
        )


def resolve_settings(
    config: FinetuneConfig, chosen: ChosenRecipe, *, task: str, num_labelled: int, world_size: int = 1
) -> TrainingSettings:
    """Decide every number of a run.

    Args:
        config: options; those that are None were not given.
        chosen: recipe of the student on the task.
        task: vcr, vqa or snli-ve.

    Raises:
        ConfigError: options that contradict each other, or a number of the recipe outside the range of its option.
    """
    options = config.optimisation
    asked = batch_size = options.batch_size
    if asked is not None:
        if options.batch_tokens is not None:
            raise ConfigError("--batch-size and --batch-tokens exclude each other.")
        # More examples than there are would be the same ones again, in memory and in time.
        batch_size = min(asked, max(num_labelled, (options.accumulate or 1) * world_size))
    values: dict[str, Any] = {
        **{key: value for key, value in PLAIN.items() if key != "warmup_fraction"},
        "warmup": PLAIN["warmup_fraction"],
        "batch_unit": "examples",
        "max_text_tokens": 0,
        "lr_scales": (),
        "no_decay": None,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "momentum": 0.0,
        "milestones": (),
        "lr_floor": 0.0,
        "clip_each": 0.0,
        "loss_scale": 1.0,
        "task_loss": "soft-target-bce" if task == "vqa" else "softmax-choice",
    }
    sources = dict.fromkeys(values, OURS)

    def take(found: Mapping[str, Any], recipe: Recipe) -> None:
        values.update(found)
        unstated = f"not stated by the recipe of {recipe.student}: its optimiser's or loop's default"
        renamed = {"task_loss": "loss", "max_text_tokens": "max_text_length", "loss_scale": "accumulation"}
        if not recipe.num_steps:
            renamed["num_steps"] = "num_epochs"
        sources.update({key: recipe.sources.get(renamed.get(key, key), unstated) for key in found})

    def give(found: Mapping[str, Any], source: str) -> None:
        values.update(found)
        sources.update(dict.fromkeys(found, source))

    if config.init is not None:
        give({"learning_rate": PRETRAINED_LEARNING_RATE}, OURS_FOR_PRETRAINED)
    if chosen.rates_of is not None:
        take({key: getattr(chosen.rates_of, key) for key in RATES}, chosen.rates_of)
    if chosen.recipe is not None:
        take(_of_recipe(config, chosen.recipe, num_labelled, world_size, batch_size), chosen.recipe)
    decided = {field.name for field in dataclasses.fields(TrainingSettings)} - {"batch_size", "adversarial"}
    for name, value in option_values(config).items():
        if name in decided and value is not None:
            give({name: value}, flag_of(name))
    if options.warmup_fraction is not None:
        give({"warmup": options.warmup_fraction}, "--warmup-fraction")
    for name, number, unit in (
        ("batch_size", batch_size, "examples"),
        ("batch_tokens", options.batch_tokens, "tokens"),
    ):
        if number is None:
            continue
        is_cut = unit == "examples" and number != asked
        source = f"--batch-size {asked}, cut to the {number} examples there are" if is_cut else flag_of(name)
        give({"batch_size": number, "batch_unit": unit}, source)
        if options.accumulate is None:
            give({"accumulate": 1}, source)
        if unit == "examples":
            give({"max_text_tokens": 0}, source)
    accumulated_by = sources["accumulate"]
    if chosen.recipe is not None and chosen.recipe.accumulation == "sum" and accumulated_by.startswith("--"):
        give({"loss_scale": float(values["accumulate"])}, accumulated_by)
    values["adversarial"], sources["adversarial"] = _adversarial(options.adversarial, chosen.recipe, chosen.note)
    if values["schedule"] == "steps" and not values["milestones"]:
        raise ConfigError(
            "The schedule of steps needs milestones.",
            next_command="put them into a recipe: schedule = 'steps', milestones = [0.7, 0.9]",
        )
    check_ranges(FinetuneConfig, values, where=chosen.note)
    return TrainingSettings(note=chosen.note, sources=sources, **values)


def _of_recipe(
    config: FinetuneConfig, recipe: Recipe, num_labelled: int, world_size: int, batch_size: int | None
) -> dict[str, Any]:
    same = {field.name for field in dataclasses.fields(FinetuningNumbers)} - {"num_steps", "batch_size", "accumulate"}
    values: dict[str, Any] = {key: getattr(recipe, key) for key in same}
    values["task_loss"] = recipe.loss
    accumulate = recipe.accumulate or 1
    values["loss_scale"] = float(accumulate) if recipe.accumulation == "sum" else 1.0
    micro_batches = accumulate * recipe.num_devices
    if recipe.batch_unit == "tokens":
        values["batch_size"], values["accumulate"] = recipe.batch_size, micro_batches
        values["max_text_tokens"] = recipe.max_text_length
    elif recipe.batch_size:
        values["batch_size"] = min(recipe.batch_size * micro_batches, num_labelled)
        values["accumulate"] = max(1, micro_batches // world_size)
    # A budget in steps that is not the recipe's keeps the recipe's share of warming up.
    values["warmup"] = recipe.warmup / recipe.num_steps if recipe.warmup >= 1 and recipe.num_steps else recipe.warmup
    # A published budget is one for the dataset that it was published for, not for data of one's own.
    if config.shots is None and benchmark_of(config.dataset) is not None:
        if recipe.num_steps:
            values["num_steps"] = recipe.num_steps
        elif recipe.num_epochs and recipe.batch_unit == "examples":
            each = batch_size or values.get("batch_size", PLAIN["batch_size"])
            values["num_steps"] = math.ceil(recipe.num_epochs * num_labelled / each)
    return values


def _adversarial(asked: str | None, recipe: Recipe | None, where: str) -> tuple[AdversarialConfig | None, str]:
    published = None
    if recipe is not None and recipe.adversarial:
        published = build_config(AdversarialConfig, recipe.adversarial, where=where)
    if asked is None:
        return published, OURS if recipe is None or published is None else recipe.sources["adversarial"]
    if asked == "none":
        return None, "--adversarial"
    base = published or AdversarialConfig()
    # A modality that the recipe leaves alone learns at the other one's rate.
    rate = max(base.text_learning_rate, base.visual_learning_rate) or ADVERSARIAL_LEARNING_RATE
    made = dataclasses.replace(
        base,
        text_learning_rate=rate if asked in ("text", "both") else 0.0,
        visual_learning_rate=rate if asked in ("image", "both") else 0.0,
    )
    return made, "--adversarial"
