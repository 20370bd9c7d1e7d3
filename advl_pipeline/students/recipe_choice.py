"""Which recipe a run follows: the published one of its student and task, a user's file, or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.students.catalogue import family_of, size_of
from advl_pipeline.students.recipes import Recipe, load_recipe, read_recipe, recipe_names

AUTO, NONE = "auto", "none"
FALLBACK_SIZE = "base"
"""Sizes without a recipe of their own (tiny ones, say) train by this one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenRecipe:
    """The recipe, if any, and one line that says which it is or why there is none.

    `is_own_size` says that the recipe is of the student's very size, so that its numbers of the architecture
    (dropout, text length, picture size) hold too.
    """

    recipe: Recipe | None
    is_own_size: bool
    note: str


def choose_recipe(student: str, task: str, wanted: str) -> ChosenRecipe:
    """Return the recipe for a student on a task.

    Args:
        student: name of the student.
        task: vcr, vqa or snli-ve.
        wanted: "auto" for the published one if there is one, "none", or the path of a TOML file whose keys win over
            the published ones.

    Raises:
        ConfigError: as `read_recipe` says.
    """
    if wanted == NONE:
        return ChosenRecipe(recipe=None, is_own_size=False, note="no recipe, as asked")
    family, own = family_of(student), size_of(student)
    size = next((size for size in (own, FALLBACK_SIZE) if (family, task, size) in recipe_names()), None)
    published = load_recipe(family, task, size) if size else None
    if wanted != AUTO:
        recipe = read_recipe(Path(wanted), family, task, own, base=published)
        return ChosenRecipe(recipe=recipe, is_own_size=size in (None, own), note=f"recipe of {wanted}")
    if published is None:
        return ChosenRecipe(recipe=None, is_own_size=False, note=f"no recipe is published for {family} on {task}")
    return ChosenRecipe(recipe=published, is_own_size=size == own, note=f"recipe {family} {task} {size}")
