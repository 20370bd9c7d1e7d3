"""From the options of a run to the settings of its student: kind of regions, tokenizer, what a recipe says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import parse_toml
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.options import PIXELS
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.training.recipes import ChosenRecipe


def student_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run's options give its student.

    Args:
        config: plain configuration of the run (`config_to_dict`, or what its folder holds).

    Raises:
        ConfigError: a setting that is not KEY=VALUE.
    """
    found: dict[str, Any] = {}
    for text in config.get("student_option") or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError("A student's option is not KEY=VALUE.", why=f"got {text!r}")
        found[key.replace("-", "_")] = _parse(value)
    for key in ("tokenizer", "align_layer"):
        if config.get(key):
            found[key] = config[key]
    if config.get("regions"):
        found["regions"] = "pixels" if list(config["regions"]) == [str(PIXELS)] else "detector"
    return found


def recipe_options(chosen: ChosenRecipe, init: Path | None) -> dict[str, Any]:
    """Return the settings of the architecture that a recipe states.

    A recipe of another size says nothing about them, and a saved student has its own except for dropout.
    """
    recipe = chosen.recipe
    if recipe is None or not chosen.is_own_size:
        return {}
    keys = ["dropout"]
    if init is None or not (init / DESCRIPTION_FILE).is_file():
        keys.append("image_size")
        # Counted in tokens of a batch, a text's length is a bound on what is trained on (`TrainingSettings`).
        if recipe.batch_unit == "examples":
            keys.append("max_text_length")
    return {key: getattr(recipe, key) for key in keys if key in recipe.sources}


def _parse(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text
