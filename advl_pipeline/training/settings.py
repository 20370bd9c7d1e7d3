"""What a run trains with, and where each number came from: ADVL's defaults, then the recipe, then the options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

from advl_pipeline.configuration import (
    check_ranges,
    config_to_dict,
    fallbacks,
    flag_of,
    option_values,
    with_options,
)
from advl_pipeline.datasets.registry import benchmark_of
from advl_pipeline.errors import ConfigError
from advl_pipeline.training.config import (
    PRETRAINED_LEARNING_RATE,
    AdversarialConfig,
    AdversarialOptions,
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
    asked = config.optimisation.batch_size
    if asked is not None:
        # More examples than there are would be the same ones again, in memory and in time.
        most = max(num_labelled, (config.optimisation.accumulate or 1) * world_size)
        config = with_options(config, batch_size=min(asked, most))
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
    if config.init is not None:
        values["learning_rate"], sources["learning_rate"] = PRETRAINED_LEARNING_RATE, OURS_FOR_PRETRAINED
    if chosen.rates_of is not None:
        values |= {key: getattr(chosen.rates_of, key) for key in RATES}
        sources |= {key: _source_of(key, chosen.rates_of) for key in RATES}
    if chosen.recipe is not None:
        found = _of_recipe(config, chosen.recipe, num_labelled, world_size)
        values |= found
        sources |= {key: _source_of(key, chosen.recipe) for key in found}
    given = _of_options(config, chosen.recipe)
    values |= {key: value for key, (value, _) in given.items()}
    sources |= {key: source for key, (_, source) in given.items()}
    if config.optimisation.batch_size != asked:
        cut = f"--batch-size {asked}, cut to the {config.optimisation.batch_size} examples there are"
        sources = {key: cut if source == "--batch-size" else source for key, source in sources.items()}
    values["adversarial"], sources["adversarial"] = _adversarial(config.adversary, chosen.recipe)
    if values["schedule"] == "steps" and not values["milestones"]:
        raise ConfigError(
            "The schedule of steps needs milestones.",
            next_command="put them into a recipe: schedule = 'steps', milestones = [0.7, 0.9]",
        )
    check_ranges(FinetuneConfig, values, where=chosen.note)
    return TrainingSettings(note=chosen.note, sources=sources, **values)


def _of_recipe(config: FinetuneConfig, recipe: Recipe, num_labelled: int, world_size: int) -> dict[str, Any]:
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
            batch_size = config.optimisation.batch_size or values.get("batch_size", PLAIN["batch_size"])
            values["num_steps"] = math.ceil(recipe.num_epochs * num_labelled / batch_size)
    return values


def _source_of(key: str, recipe: Recipe) -> str:
    name = {"task_loss": "loss", "max_text_tokens": "max_text_length", "loss_scale": "accumulation"}.get(key, key)
    if key == "num_steps" and not recipe.num_steps:
        name = "num_epochs"
    return recipe.sources.get(
        name, f"not stated by the recipe of {recipe.student}: its optimiser's or loop's default"
    )


def _of_options(config: FinetuneConfig, recipe: Recipe | None) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    decided = {field.name for field in dataclasses.fields(TrainingSettings)} - {"batch_size", "adversarial"}
    for name, value in option_values(config).items():
        if name in decided and value is not None:
            found[name] = (value, flag_of(name))
    if config.optimisation.warmup_fraction is not None:
        found["warmup"] = (config.optimisation.warmup_fraction, "--warmup-fraction")
    if config.optimisation.batch_size is not None and config.optimisation.batch_tokens is not None:
        raise ConfigError("--batch-size and --batch-tokens exclude each other.")
    for option, unit in (("batch_size", "examples"), ("batch_tokens", "tokens")):
        if (value := getattr(config.optimisation, option)) is not None:
            source = flag_of(option)
            accumulate = config.optimisation.accumulate or 1
            found |= {"batch_size": (value, source), "batch_unit": (unit, source)}
            found.setdefault("accumulate", (accumulate, source))
            if unit == "examples":
                found["max_text_tokens"] = (0, source)
    if "accumulate" in found and recipe is not None and recipe.accumulation == "sum":
        found["loss_scale"] = (float(found["accumulate"][0]), found["accumulate"][1])
    return found


def _adversarial(config: AdversarialOptions, recipe: Recipe | None) -> tuple[AdversarialConfig | None, str]:
    published = AdversarialConfig(**recipe.adversarial) if recipe is not None and recipe.adversarial else None
    changes = {
        "norm": config.adversarial_norm,
        "max_norm": config.adversarial_max_norm,
        "num_steps": config.adversarial_steps,
        "kl_weight": config.adversarial_kl_weight,
    }
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    rate = config.adversarial_learning_rate
    modality = config.adversarial
    if modality == "none" or (modality is None and published is None):
        if given or rate is not None:
            raise ConfigError(
                "Options of adversarial finetuning are given, but it is off.",
                next_command="add --adversarial text, image or both",
            )
        return None, OURS if modality is None else "--adversarial"
    base = published or AdversarialConfig()
    if modality is None and rate is None and not given:
        assert recipe is not None
        return base, recipe.sources["adversarial"]
    # A modality that the recipe leaves alone learns at the other one's rate.
    usual = max(base.text_learning_rate, base.visual_learning_rate) or ADVERSARIAL_LEARNING_RATE
    rate = usual if rate is None else rate
    uses_text = base.text_learning_rate > 0 if modality is None else modality in ("text", "both")
    uses_image = base.visual_learning_rate > 0 if modality is None else modality in ("image", "both")
    made = dataclasses.replace(
        base,
        text_learning_rate=rate if uses_text else 0.0,
        visual_learning_rate=rate if uses_image else 0.0,
        **given,
    )
    if made.num_steps < 1 or rate <= 0:
        raise ConfigError("Adversarial finetuning needs at least one step, of a size above 0.")
    return made, "--adversarial"
