"""How the originals were finetuned: one declared recipe per (student, task, size), each number with its source.

The files are `data/recipes/*.toml` and those of plug-ins. A file has `[common]` and one table per task and size,
such as `[vqa.base]`; a table's `from` says where its numbers come from and `[vqa.base.elsewhere]` names another
place for single keys. Parameter groups follow from a recipe by pure functions.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Never

from advl_pipeline.configuration import build_config, read_toml
from advl_pipeline.errors import ConfigError, suggest_names
from advl_pipeline.packages import data_files
from advl_pipeline.students.registry import family_of, size_of
from advl_pipeline.training.config import Hyperparameters, TaskLoss, Undecided


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleRule:
    """Parameters whose name matches `pattern` learn at `scale` times the base learning rate."""

    pattern: str
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuningNumbers(Hyperparameters[Undecided]):
    """All numbers that a student is finetuned by: a recipe states some of them, and a run decides all.

    `warmup` is in optimiser steps when at least 1, else a share of all steps. `clip_norm` bounds the norm of all
    gradients together, `clip_each` that of each parameter's; 0 for neither. `no_decay` is searched in parameter
    names; None spares biases and norms by kind of module. How batches are counted, a recipe and a run say themselves.
    """

    no_decay: str | None = ""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    adapt_lr_scale: float = 1.0
    lr_scales: tuple[ScaleRule, ...] = ()
    clip_each: float = 0.0
    milestones: tuple[float, ...] = ()
    lr_floor: float = 0.0
    warmup: float = 0.0
    batch_unit: Literal["tokens", "examples"] = "examples"


UNSTATED = {"head_lr_scale": 1.0, "clip_norm": 0.0, "schedule": "linear", "accumulate": 1}
"""What the loop of a recipe's authors does where their files say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(FinetuningNumbers[None]):
    """What the files of a recipe state. `batch_size` counts on one device, before accumulation.

    Exactly one of `num_steps` and `num_epochs` is positive. `accumulation` says whether the gradients of a device's
    micro-batches are averaged or, as UNITER does, added up, which matters to clipping. `sources` maps each key to its
    origin. `adversarial` holds VILLA's numbers, empty elsewhere.
    """

    student: str
    task: str
    size: str
    num_epochs: int = 0
    accumulation: Literal["mean", "sum"] = "mean"
    num_devices: int = 1
    dropout: float = 0.1
    max_text_length: int = 0
    image_size: int = 0
    seed: int = 0
    loss: TaskLoss
    adversarial: Mapping[str, Any]
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Names of parameters that share a learning rate and a weight decay."""

    names: tuple[str, ...]
    learning_rate: float
    lr_scale: float
    weight_decay: float


def recipe_names() -> tuple[tuple[str, str, str], ...]:
    """Return every (student, task, size) that has a recipe, sorted."""
    found = []
    for student in _students():
        document = _read(student)
        for task, sizes in document.items():
            if isinstance(sizes, dict) and task != "common":
                found += [(student, task, size) for size in sizes]
    return tuple(sorted(found))


@functools.cache
def load_recipe(student: str, task: str, size: str) -> Recipe:
    """Return a published recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if student not in _students():
        raise ConfigError(f"No recipe for the student {student!r}.", why=suggest_names(student, _students()))
    document = _read(student)
    if task not in document or size not in document[task]:
        known = [f"{t} {s}" for name, t, s in recipe_names() if name == student]
        raise ConfigError(
            f"No recipe for {student} on {task} at size {size}: its authors published none.",
            why="there are: " + ", ".join(known),
            next_command="give learning rate, steps and batch size yourself",
        )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for table in (document["common"], document[task][size]):
        elsewhere = table.get("elsewhere", {})
        for key, value in table.items():
            if key not in ("from", "elsewhere"):
                values[key] = value
                sources[key] = f"{document['repository']}: {elsewhere.get(key, table['from'])}"
    return _build(student, task, size, values, sources, where=f"data/recipes/{student}.toml")


def read_recipe(path: Path, student: str, task: str, size: str, *, base: Recipe | None = None) -> Recipe:
    """Return the recipe of a user's file: a flat table of keys, on top of the published one where there is one.

    Raises:
        ConfigError: the file is not there or not TOML, names no key of a recipe, or lacks one that is needed.
    """
    table = read_toml(path)
    values = {} if base is None else {name: getattr(base, name) for name in base.sources}
    sources = {} if base is None else dict(base.sources)
    needed = ("optimiser", "learning_rate", "weight_decay", "loss")
    if missing := [key for key in needed if key not in {**values, **table}]:
        raise ConfigError(
            f"The recipe lacks {', '.join(missing)}.",
            where=str(path),
            why=f"{student} has no published recipe for {task} that would give it",
        )
    sources |= dict.fromkeys(table, str(path))
    return _build(student, task, size, {**values, **table}, sources, where=str(path))


def group_parameters(
    encoder_names: Iterable[str],
    head_names: Iterable[str],
    recipe: FinetuningNumbers[Never],
    spared: Collection[str] | None = None,
) -> tuple[ParameterGroup, ...]:
    """Split parameters into groups by (learning rate, weight decay), as the recipe's original does.

    The decay test is a search in the name, so a norm whose name does not match `no_decay` is decayed (UNITER's
    `img_layer_norm.weight`): that is the original's behaviour.

    Args:
        spared: names without decay [default: those in which `no_decay` is found].
    """
    no_decay = re.compile(recipe.no_decay) if recipe.no_decay else None
    rules = [(re.compile(rule.pattern), rule.scale) for rule in recipe.lr_scales]
    groups: dict[tuple[float, float], list[str]] = {}
    for is_head, names in ((True, head_names), (False, encoder_names)):
        for name in names:
            scale = recipe.head_lr_scale if is_head else 1.0
            if not is_head:
                scale = next((scale for pattern, scale in rules if pattern.search(name)), 1.0)
            found = no_decay is not None and no_decay.search(name)
            decay = 0.0 if (found if spared is None else name in spared) else recipe.weight_decay
            groups.setdefault((scale, decay), []).append(name)
    return tuple(
        ParameterGroup(
            names=tuple(names), learning_rate=recipe.learning_rate * scale, lr_scale=scale, weight_decay=decay
        )
        for (scale, decay), names in groups.items()
    )


def describe(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return (key, value, source) of every number that the recipe's files state, for printing."""
    return [(key, str(getattr(recipe, key)), source) for key, source in sorted(recipe.sources.items())]


def _students() -> tuple[str, ...]:
    return tuple(sorted(data_files("recipes")))


def _read(student: str) -> dict[str, Any]:
    return _parsed(data_files("recipes")[student].read_text(encoding="utf-8"))


# Every cell of a study asks for a recipe, several times.
_parsed = functools.lru_cache(tomllib.loads)


def _build(student: str, task: str, size: str, values: dict[str, Any], sources: dict[str, str], where: str) -> Recipe:
    rules = [
        rule if isinstance(rule, ScaleRule) else ScaleRule(pattern=rule[0], scale=rule[1])
        for rule in values.get("lr_scales", ())
    ]
    own = {"student": student, "task": task, "size": size, "sources": sources}
    return build_config(Recipe, {"adversarial": {}}, UNSTATED, {**values, "lr_scales": rules}, own, where=where)


AUTO, NONE = "auto", "none"
LENDERS = ("vqa", "snli-ve", "vcr")
"""Tasks whose rates a family lends to a task without a recipe: most families were finetuned on VQA."""
FALLBACK_SIZE = "base"
"""Sizes without a recipe of their own (tiny ones, say) train by this one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenRecipe:
    """The recipe, if any, and one line that says which it is or why there is none.

    `is_own_size` says that the recipe is of the student's very size, so that its numbers of the architecture
    (dropout, text length, picture size) hold too. `rates_of` is the recipe of another task of the same family, whose
    optimiser and rates serve where there is no recipe.
    """

    recipe: Recipe | None
    is_own_size: bool
    note: str
    rates_of: Recipe | None = None


def choose_recipe(student: str, task: str, wanted: str) -> ChosenRecipe:
    """Return the recipe for a student on a task.

    Args:
        task: vcr, vqa or snli-ve.
        wanted: "auto" for the published one if there is one, "none", or the path of a TOML file whose keys win over
            the published ones.

    Raises:
        ConfigError: as `read_recipe` says.
    """
    if wanted == NONE:
        return ChosenRecipe(recipe=None, is_own_size=False, note="no recipe, as asked")
    family, own = family_of(student), size_of(student)
    published, size = _published(family, task, own)
    if wanted != AUTO:
        recipe = read_recipe(Path(wanted), family, task, own, base=published)
        return ChosenRecipe(recipe=recipe, is_own_size=size in (None, own), note=f"recipe of {wanted}")
    if published is None:
        note = f"no recipe is published for {family} on {task}"
        for lender in LENDERS:
            lent, size = _published(family, lender, own)
            if lent is not None:
                note += f", so that optimiser and rates are those of {family} {lender} {size}"
                return ChosenRecipe(recipe=None, is_own_size=False, note=note, rates_of=lent)
        return ChosenRecipe(recipe=None, is_own_size=False, note=note)
    return ChosenRecipe(recipe=published, is_own_size=size == own, note=f"recipe {family} {task} {size}")


def _published(family: str, task: str, own: str) -> tuple[Recipe | None, str | None]:
    sizes = _read(family).get(task, {}) if family in _students() else {}
    size = next((size for size in (own, FALLBACK_SIZE) if size in sizes), None)
    return (load_recipe(family, task, size) if size else None), size


def published_recipes(student: str) -> dict[str, list[dict[str, str]]]:
    """Return task -> every number of a student's published recipe with its source, as plain JSON types."""
    own = (family_of(student), size_of(student))
    return {
        task: [
            {"key": key, "value": value, "source": source}
            for key, value, source in describe(load_recipe(family, task, size))
        ]
        for family, task, size in recipe_names()
        if (family, size) == own
    }
