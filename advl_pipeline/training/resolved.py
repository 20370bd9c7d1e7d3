"""A run decided: from its options, the recipe of its student, and how much there is to train on."""

from __future__ import annotations

from dataclasses import dataclass

from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import ResolvedMethod, resolve_method
from advl_pipeline.training.recipes import ChosenRecipe, choose_recipe
from advl_pipeline.training.settings import TrainingSettings, resolve_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What every part of the training is given: the options, and all that follows from them.

    `settings` are the numbers that it trains with, each with where it came from; `method` is what is done with the
    teachers.
    """

    config: FinetuneConfig
    chosen: ChosenRecipe
    settings: TrainingSettings
    method: ResolvedMethod

    @property
    def num_steps(self) -> int:
        """Optimiser steps of both phases."""
        return self.method.num_adapt_steps + self.method.num_finetune_steps


def resolve_run(config: FinetuneConfig, *, kind: str, num_labelled: int, world_size: int = 1) -> Run:
    """Decide a run.

    Args:
        config: its options.
        kind: of the task that it trains on: vcr, vqa or snli-ve.
        num_labelled: labelled examples that are trained on.
        world_size: number of processes.

    Raises:
        ConfigError: options or a recipe that contradict each other.
    """
    chosen = choose_recipe(config.student, kind, config.recipe)
    settings = resolve_settings(config, chosen, task=kind, num_labelled=num_labelled, world_size=world_size)
    method = resolve_method(config, num_steps=settings.num_steps)
    return Run(config=config, chosen=chosen, settings=settings, method=method)
