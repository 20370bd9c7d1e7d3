"""Recipes of the original implementations, and the resolved hyperparameters of a run with their origins.

There is one declared recipe per (student, kind of task, size), in `data/recipes/*.toml` and the files of plug-ins. A
file has `[common]` and one table per benchmark and size, such as `[vqa.base]`, which serves all tasks of its kind. A
table's `from` names the source of its values, and `[vqa.base.elsewhere]` names another source for single keys. Values
come from ADVL's defaults, then the recipe, then the options.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_pipeline.base.configuration import build_config, by_field, flag_of, option_values
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.packages import data_files, read_data_file
from advl_pipeline.base.toml import read_toml
from advl_pipeline.datasets.records import PUBLISHED_FOR
from advl_pipeline.students.presets import family_of, size_of
from advl_pipeline.training.config import (
    DEFAULT_EPOCHS,
    PRETRAINED_LEARNING_RATE,
    AdversarialConfig,
    FinetuneConfig,
    Recipe,
    ScaleRule,
    TrainingSettings,
)


@functools.cache
def load_recipe(student: str, task: str, size: str) -> Recipe:
    """Return a published recipe."""
    document = _tables(student)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for table in (document["common"], document[task][size]):
        elsewhere = table.get("elsewhere", {})
        for key, value in table.items():
            if key not in ("from", "elsewhere"):
                values[key] = value
                sources[key] = f"{document['repository']}: {elsewhere.get(key, table['from'])}"
    return _build(student, task, size, values, sources, where=f"data/recipes/{student}.toml")


def read_recipe(path: Path, student: str, kind: str, size: str, *, base: Recipe | None = None) -> Recipe:
    """Return the recipe of a user's file: a flat table of keys that override the published recipe, if there is one.

    Raises:
        ConfigError: the file is missing or not TOML, has an unknown key, or lacks a required one.
    """
    table = {name: value for name, (_, value) in by_field(Recipe, read_toml(path), where=str(path)).items()}
    values = {} if base is None else {name: getattr(base, name) for name in base.sources}
    sources = {} if base is None else dict(base.sources)
    needed = ("optimiser", "learning_rate", "weight_decay", "loss")
    if missing := [key for key in needed if key not in {**values, **table}]:
        raise ConfigError(
            f"The recipe lacks {', '.join(missing)}.",
            where=str(path),
            why=f"{student} has no published recipe for {kind} that would give it",
        )
    sources |= dict.fromkeys(table, str(path))
    return _build(student, PUBLISHED_FOR.get(kind, kind), size, {**values, **table}, sources, where=str(path))


def _tables(student: str) -> dict[str, Any]:
    """Return the tables of a student's file by name; empty without a file."""
    file = data_files("recipes").get(student)
    return {} if file is None else _parsed(file)


# Every run of a study requests a recipe several times.
_parsed = functools.cache(read_data_file)


def _build(student: str, task: str, size: str, values: dict[str, Any], sources: dict[str, str], where: str) -> Recipe:
    rules = []
    scales = values.get("lr_scales", ())
    for rule in scales if isinstance(scales, (list, tuple)) else [scales]:
        match rule:
            case [str(pattern), int() | float() as scale] if 0 <= scale < math.inf and not isinstance(scale, bool):
                rules.append(ScaleRule(pattern, scale))
            case _:
                raise _wrong_names(f"lr_scales {rule!r}: it must be a pattern and a number of at least 0", where)
    no_decay = values.get("no_decay")
    spared = [("no_decay", no_decay)] if isinstance(no_decay, str) else []
    for key, pattern in [*spared, *(("lr_scales", rule.pattern) for rule in rules)]:
        try:
            re.compile(pattern)
        except (OverflowError, RecursionError, re.error) as error:
            raise _wrong_names(f"{key} {pattern!r}: {error}", where) from None
    fixed = {"student": student, "task": task, "size": size, "sources": sources}
    return build_config(Recipe, {"adversarial": {}}, {**values, "lr_scales": rules}, fixed, where=where)


def _wrong_names(why: str, where: str) -> ConfigError:
    return ConfigError("The parameter patterns of the recipe are invalid.", where=where, why=why)


AUTO = "auto"
NONE = "none"
FALLBACK_SIZE = "base"
"""Size whose recipe serves sizes without one (tiny ones, for example)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenRecipe:
    """The recipe, if any, and one line that names it or explains why there is none.

    `is_own_size` says that the recipe is for exactly the student's size, so that its architecture settings (dropout,
    text length, picture size) also apply. `rates_of` is a recipe of the same family for another task, whose optimiser
    and rates are used if there is no recipe.
    """

    note: str
    recipe: Recipe | None = None
    is_own_size: bool = False
    rates_of: Recipe | None = None


def choose_recipe(student: str, kind: str, wanted: str) -> ChosenRecipe:
    """Return the recipe for a student on a kind of task.

    Args:
        kind: head of the task (`head_name`).
        wanted: "auto" for the published one if there is one, "none", or the path of a TOML file whose keys override
            the published ones.

    Raises:
        ConfigError: as for `read_recipe`.
    """
    if wanted == NONE:
        return ChosenRecipe(note="no recipe, as asked")
    family, student_size = family_of(student), size_of(student)
    published = _published(family, kind, student_size)
    is_own_size = published is None or published.size == student_size
    if wanted != AUTO:
        recipe = read_recipe(Path(wanted), family, kind, student_size, base=published)
        return ChosenRecipe(note=f"recipe of {wanted}", recipe=recipe, is_own_size=is_own_size)
    if published is not None:
        note = f"recipe {family} {kind} {published.size}"
        return ChosenRecipe(note=note, recipe=published, is_own_size=is_own_size)
    note = f"no recipe is published for {family} on {kind}"
    for lender in PUBLISHED_FOR:
        if lent := _published(family, lender, student_size):
            note += f", so that optimiser and rates are those of {family} {lender} {lent.size}"
            return ChosenRecipe(note=note, rates_of=lent)
    return ChosenRecipe(note=note)


def _published(family: str, kind: str, student_size: str) -> Recipe | None:
    benchmark = PUBLISHED_FOR.get(kind, kind)
    sizes = _tables(family).get(benchmark, {})
    size = next((size for size in (student_size, FALLBACK_SIZE) if size in sizes), None)
    return load_recipe(family, benchmark, size) if size else None


def published_recipes(student: str) -> dict[str, list[dict[str, str]]]:
    """Return task -> every value of a student's published recipe with its source, as JSON types."""
    family, size = family_of(student), size_of(student)
    return {
        task: [
            {"key": key, "value": str(getattr(recipe, key)), "source": source}
            for key, source in sorted(recipe.sources.items())
        ]
        for task, sizes in sorted(_tables(family).items())
        if isinstance(sizes, dict) and task != "common" and size in sizes
        for recipe in [load_recipe(family, task, size)]
    }


OURS = "ADVL's default"
OURS_FOR_PRETRAINED = "ADVL's default for a student that starts from --init"

RATES = (
    "optimiser", "learning_rate", "head_lr_scale", "lr_scales", "weight_decay", "no_decay", "betas", "eps",
    "momentum",
)  # fmt: skip
"""Settings that a recipe of the same family on another task lends."""

_AS_STATED = (
    *RATES, "adapt_lr_scale", "schedule", "warmup", "milestones", "lr_floor", "clip_norm", "clip_each", "batch_unit",
)  # fmt: skip
"""Settings that a run takes unchanged from its recipe; the others depend on the data and the processes."""


def resolve_settings(
    config: FinetuneConfig,
    chosen: ChosenRecipe,
    *,
    kind: str,
    num_labelled: int,
    is_published: bool = False,
    world_size: int = 1,
    usual_epochs: float = DEFAULT_EPOCHS,
) -> TrainingSettings:
    """Resolve all hyperparameters of a run.

    Args:
        config: options; None means not given.
        chosen: recipe of the student on the task.
        kind: head of the task (`head_name`).
        is_published: as for `resolved.resolve_run`.
        usual_epochs: passes over the labelled examples if neither a recipe nor an option gives a number.

    Raises:
        ConfigError: options contradict each other, or a value of the recipe is outside the range of its option.
    """
    options, recipe = config.optimisation, chosen.recipe
    asked = batch_size = options.batch_size
    if asked is not None:
        # A batch larger than the data would repeat examples, at a cost in memory and time.
        batch_size = min(asked, max(num_labelled, (options.accumulate or 1) * world_size))
    decided = {key: (value, OURS) for key, value in default_numbers(kind).items()}
    if config.init is not None:
        decided["learning_rate"] = PRETRAINED_LEARNING_RATE, OURS_FOR_PRETRAINED
    if (lender := chosen.rates_of) is not None:
        decided |= {key: (getattr(lender, key), lender.source_of(key)) for key in RATES}
    if recipe is not None:
        has_budget = is_published and config.shots is None
        stated = _of_recipe(chosen, num_labelled, world_size, batch_size, has_budget=has_budget)
        decided |= {key: (value, recipe.source_of(key)) for key, value in stated.items()}
    for key, value in option_values(config).items():
        if key in decided and value is not None:
            decided[key] = value, flag_of(key)
    if batch_size is not None:
        cut = "" if batch_size == asked else f" {asked}, cut to the {batch_size} examples there are"
        source = f"--batch-size{cut}"
        decided |= {"batch_size": (batch_size, source), "batch_unit": ("examples", source)}
        decided["max_text_tokens"] = 0, source
        if options.accumulate is None:
            decided["accumulate"] = 1, source
    decided["num_steps"], decided["epochs"] = _length(options.epochs, decided, num_labelled, usual_epochs)
    accumulate, source = decided["accumulate"]
    if recipe is not None and recipe.accumulation == "sum" and source.startswith("--"):
        decided["loss_scale"] = float(accumulate), source
    values = {key: value for key, (value, _) in decided.items()}
    sources = {key: source for key, (_, source) in decided.items()}
    if values["schedule"] == "steps" and not values["milestones"]:
        raise ConfigError(
            "The schedule 'steps' needs milestones.",
            where=sources["schedule"],
            next_command="put them into a recipe: schedule = 'steps', milestones = [0.7, 0.9]",
        )
    return TrainingSettings(note=chosen.note, sources=sources, **values)


Decided = tuple[Any, str]
"""A value and its origin."""


def _length(
    asked: float | None, decided: Mapping[str, Decided], num_labelled: int, usual: float
) -> tuple[Decided, Decided]:
    """Return the steps of a run and the corresponding passes over its labelled examples.

    Args:
        asked: `--epochs`.
        decided: the values so far; the number of steps is ADVL's default if neither a recipe nor an option gives one.

    Raises:
        ConfigError: epochs are requested but batches count tokens, so an epoch has no fixed number of batches.
    """
    (num_steps, source), (batch_size, _) = decided["num_steps"], decided["batch_size"]
    if decided["batch_unit"][0] == "tokens":
        if asked is not None:
            raise ConfigError(
                "An epoch has no fixed number of steps where batches count tokens.",
                where="--epochs",
                next_command="--num-steps, or --batch-size, which counts examples",
            )
        return decided["num_steps"], (None, source)
    if asked is not None or source == OURS:
        num_steps = steps_of_epochs(asked, num_labelled=num_labelled, batch_size=batch_size, usual=usual)
        source = OURS if asked is None else f"--epochs {asked:g}"
    return (num_steps, source), (num_steps * batch_size / num_labelled, source)


def steps_of_epochs(asked: float | None, *, num_labelled: int, batch_size: int, usual: float = DEFAULT_EPOCHS) -> int:
    """Return the number of optimiser steps of some passes over the labelled examples.

    Args:
        asked: number of passes; None for ADVL's default, which repeats few labels more often.
        batch_size: in examples.
        usual: ADVL's default, in passes.
    """
    num_steps = math.ceil((asked or usual) * num_labelled / batch_size)
    return num_steps if asked else max(TrainingSettings.num_steps, num_steps)


def default_numbers(kind: str) -> dict[str, Any]:
    """Return ADVL's own values, which apply if neither a recipe nor an option gives one."""
    fields = dataclasses.fields(TrainingSettings)
    numbers = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return numbers | {"task_loss": "soft-target-bce" if kind == "answers" else "softmax-choice"}


def _of_recipe(
    chosen: ChosenRecipe, num_labelled: int, world_size: int, batch_size: int | None, *, has_budget: bool
) -> dict[str, Any]:
    recipe = chosen.recipe
    assert recipe is not None
    values: dict[str, Any] = {key: getattr(recipe, key) for key in _AS_STATED}
    if recipe.adversarial:
        values["adversarial"] = build_config(AdversarialConfig, recipe.adversarial, where=chosen.note)
    values["task_loss"] = recipe.loss
    values["loss_scale"] = float(recipe.accumulate) if recipe.accumulation == "sum" else 1.0
    micro_batches = recipe.accumulate * recipe.num_devices
    if recipe.batch_unit == "tokens":
        values["batch_size"], values["accumulate"] = recipe.batch_size, micro_batches
        values["max_text_tokens"] = recipe.max_text_length
    elif recipe.batch_size:
        values["batch_size"] = min(recipe.batch_size * micro_batches, num_labelled)
        values["accumulate"] = max(1, micro_batches // world_size)
    # With another budget in steps than the recipe's, warmup keeps its share of the steps.
    values["warmup"] = recipe.warmup / recipe.num_steps if recipe.warmup >= 1 and recipe.num_steps else recipe.warmup
    # A published budget is for its own dataset, not for your own data.
    if has_budget:
        if recipe.num_steps:
            values["num_steps"] = recipe.num_steps
        elif recipe.num_epochs and recipe.batch_unit == "examples":
            each = batch_size or values.get("batch_size", TrainingSettings.batch_size)
            values["num_steps"] = math.ceil(recipe.num_epochs * num_labelled / each)
    return values
