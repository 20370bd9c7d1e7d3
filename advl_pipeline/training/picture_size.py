"""The size of the pictures that a student will read, before it is finetuned: `advl prepare` stores them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.datasets.records import head_name
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.build_model import recipe_options, student_options
from advl_pipeline.training.recipes import choose_recipe


def picture_side(student: str | None, options: Sequence[str], *, tasks: Sequence[str]) -> int:
    """Return the side in pixels to which a student squeezes pictures when finetuned with these options.

    Args:
        options: student settings as KEY=VALUE.
        tasks: of the dataset for finetuning; the first determines the recipe.

    Raises:
        ConfigError: the student or a setting is missing or unknown, or the student does not squeeze pictures.
    """
    if student is None:
        raise ConfigError(
            "The size of the stored pictures is not set.",
            next_command="add --student NAME, such as vilt, or --size PIXELS",
        )
    chosen = choose_recipe(student, head_name(tasks[0]) if tasks else "", "auto")
    given = student_options({"student_option": list(options)})
    overrides: dict[str, Any] = {**recipe_options(chosen, None), **given}
    with torch.device("meta"):
        built = build_student(student, overrides=overrides)
    if not isinstance(built, PixelStudent):
        raise ConfigError(
            f"{student} reads no squeezed pictures, so that there is nothing to store for it.",
            next_command=advise(["advl", "students", "list"], note="choose a student over pixels, such as vilt"),
        )
    return built.config.image_size
