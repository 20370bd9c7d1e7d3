"""Which options make two runs the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import config_to_dict
from advl_pipeline.students.recipe_choice import AUTO, NONE, has_recipes
from advl_pipeline.training.config import PLAIN, FinetuneConfig

_FIRST_FIELDS = frozenset(
    """accumulate adapt_fraction adapt_objective adapt_on answers batch_size cache candidates checkpoint_every
    clip_norm confidence confidence_folds data_root dataset distance distill_decay distill_weight
    head_lr_scale hide_picture init
    label_order learning_rate live method mixed_precision num_steps on_error output pathway
    resume seed selection selection_alpha selection_rho shots split steps student target_norm task
    teacher_control text_style vision_target warmup_fraction weight_decay weight_max weight_normalise
    weight_shuffle weighting""".split()
)
"""Options that every run has written down; the others are written only where they say something."""


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's plain configuration says about its numbers, the same for equal runs.

    An option at its default is left out unless every run writes it, so that a new option does not make a finished
    run another one. A run without a recipe has ADVL's numbers in place of options that were not given. One that was
    written before there were recipes was made without.
    """
    defaults = config_to_dict(FinetuneConfig(dataset="", output=Path()))
    config = {key: defaults[key] for key in _FIRST_FIELDS} | dict(config)
    recipe = config.get("recipe", NONE)
    if recipe == AUTO and not has_recipes(config["student"]):
        recipe = NONE
    found = {
        key: value
        for key, value in config.items()
        if key != "recipe" and (key in _FIRST_FIELDS or value != defaults.get(key))
    }
    if recipe == NONE:
        return found | {key: value for key, value in PLAIN.items() if found.get(key) is None}
    return found | {"recipe": recipe}
