"""What makes two runs the same run: their options, and the content of what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advl_pipeline.cache.identity import digest
from advl_pipeline.configuration import config_to_dict, options_without
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import Run


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's plain configuration says about its numbers.

    Options at their default are in it too: another version's default may be another.
    """
    return options_without(FinetuneConfig, config, "beside", "none")


def describe_run(
    run: Run,
    *,
    datasets: Sequence[Mapping[str, Any]],
    label_names: Mapping[str, Sequence[str]],
    caches: Sequence[Mapping[str, Any]],
    init_digest: str | None,
    labelled: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return everything that decides the numbers of a run, as plain JSON types: the content of run.json.

    Caches, dataset, pretrained student and recipe stand in it by their content, so that they may move but not
    change. Region features and tokenizers that an option names stand in it by their path.

    Args:
        run: as it was decided.
        datasets: identities of the split that is trained on, and then of the other ones that the adapt step sees,
            with the digests of their content.
        label_names: task -> its classes.
        caches: identities of the caches that it reads, in the order given: it chooses the initial projections.
        init_digest: of the pretrained student's files, if there is one.
        labelled: ids of the labelled examples where a list names them.
    """
    options = run_identity(config_to_dict(run.config))
    # How a step is split over processes may change when a run resumes.
    decided = {
        key: entry["value"] for key, entry in run.settings.to_dict()["settings"].items() if key != "accumulate"
    }
    published = None if run.chosen.recipe is None else config_to_dict(run.chosen.recipe)
    return {
        "options": options_without(FinetuneConfig, options, "content"),
        "settings": decided,
        "recipe": published and {key: value for key, value in published.items() if key != "sources"},
        "init": init_digest,
        "dataset": dict(datasets[0]),
        "adapt_dataset": {str(number): dict(other) for number, other in enumerate(datasets[1:], start=1)},
        "labels": {task: digest(list(names)) for task, names in label_names.items()},
        "cache": {str(number): dict(identity) for number, identity in enumerate(caches, start=1)},
    } | ({} if labelled is None else {"labelled": digest(list(labelled))})
