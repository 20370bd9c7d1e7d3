"""The identity of a run, by content: the options, recipe, weights, data and caches behind its results, as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advl_pipeline.base.configuration import changed_options, config_to_dict, options_without, recorded_options
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.students.known_words import ESTIMATE
from advl_pipeline.students.weight_files import file_digest, student_digest, tokenizer_digest
from advl_pipeline.training.config import SCHEMA, FinetuneConfig, TrainingSettings
from advl_pipeline.training.inputs import Inputs, dataset_identity
from advl_pipeline.training.recipes import OURS, ChosenRecipe
from advl_pipeline.training.resolved import Run, adapt_steps
from advl_pipeline.training.validation import Validation


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run's plain configuration that determine its results: those not at their default.

    The student is always included, because its default comes from a plug-in.
    """
    options = options_without(FinetuneConfig, config, "provenance", "none")
    return {"student": options["student"]} | recorded_options(
        FinetuneConfig, changed_options(FinetuneConfig, options)
    )


def recipe_identity(chosen: ChosenRecipe) -> dict[str, Any]:
    """Return the content of a run's recipe files: the recipe that it follows, or the one whose rates it borrows."""
    return {
        name: {"student": recipe.student, "task": recipe.task, "size": recipe.size}
        | {key: value for key, value in config_to_dict(recipe).items() if key in recipe.sources}
        for name, recipe in (("followed", chosen.recipe), ("rates_of", chosen.rates_of))
        if recipe is not None
    }


NAMED_FILES: Mapping[str, Callable[[str], str | None]] = {
    "tokenizer": tokenizer_digest,
    "known_words": file_digest,
    "head_answers": file_digest,
}
"""Options that name a file of the student besides its weights, and their digest functions; None without a file."""


def run_record(
    run: Run,
    inputs: Inputs,
    caches: Sequence[TeacherCache],
    region_caches: Sequence[TeacherCache],
    validation: Validation | str = "",
) -> dict[str, Any]:
    """Return everything that determines the results of a run, as JSON types: the content of run.json.

    Caches, datasets, pretrained student, recipe, a list of labelled examples and files that other options name are
    included by content, so that they may move but not change. The order of the caches counts, because it determines
    the initial projections.

    Raises:
        WeightsUnavailable: the pretrained student is missing.
    """
    config, dataset = run.config, inputs.dataset
    splits = [dataset_identity(split) for split in inputs.splits]
    options = run_identity(config_to_dict(config))
    more: dict[str, Any] = {}
    if run.settings.sources["num_steps"] == OURS and run.settings.num_steps != TrainingSettings.num_steps:
        # The default was once the same number of steps for any number of labels.
        more["num_steps"] = run.settings.num_steps
    if run.method.num_adapt_steps not in (0, adapt_steps(config)):
        more["adapt_steps"] = run.method.num_adapt_steps
    if run.method.reads_words and not run.known.is_given:
        more["estimated_words"] = ESTIMATE
    if run.stops_early and isinstance(validation, Validation) and validation.dataset is not dataset:
        more["val"] = dataset_identity(validation.dataset)
    if config.ids is not None:
        more["labelled"] = digest([dataset.example_ids[row] for row in inputs.labelled])
    if config.regions:
        more["regions"] = {str(number): dict(cache.identity) for number, cache in enumerate(region_caches, start=1)}
    return more | {
        "schema": SCHEMA,
        "options": options_without(FinetuneConfig, options, "content"),
        "recipe": recipe_identity(run.chosen),
        "init": None if config.init is None else student_digest(config.init),
        "files": {
            name: digest_of(options[name]) for name, digest_of in NAMED_FILES.items() if options.get(name) is not None
        },
        "dataset": splits[0],
        "adapt_dataset": {str(number): other for number, other in enumerate(splits[1:], start=1)},
        "labels": {task: digest(list(dataset.label_names(task))) for task in dataset.tasks},
        "cache": {str(number): dict(cache.identity) for number, cache in enumerate(caches, start=1)},
    }
