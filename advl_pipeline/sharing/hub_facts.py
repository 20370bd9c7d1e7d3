"""The metadata of cards for the hub's pages, formatted by the hub's library.

Unknown facts are omitted: a licence that no dataset card states, and a base model from a local path.
"""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from advl_pipeline.base.repositories import HUB_PREFIX
from advl_pipeline.datasets.cards import by_split, known_card
from advl_pipeline.runs.evaluations import EvaluationDocument, Protocol

TAG = "advl"
"""Tag in the card of every push; a repository with it may be replaced."""

IDS_FILE = "ids.parquet"
"""Units of a pushed cache. The hub's pages show this file instead of the cache, which is Zarr."""

_LICENCES: Mapping[str, str] = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC0": "cc0-1.0",
}
"""Prefix of a dataset card's licence -> the hub's identifier."""

_WAYS: Mapping[Protocol, str] = {
    "likelihood": "likeliest candidate",
    "letters": "answer written, options behind letters",
}
"""Protocols in results -> their descriptions."""


def licence_of(dataset: str) -> tuple[str, str]:
    """Return the licence of a dataset's data in words and as the hub's identifier; "" if unknown."""
    words = str(known_card(dataset).facts.get("licence", ""))
    return words, next((name for start, name in _LICENCES.items() if words.startswith(start)), "")


def repositories_of(dataset: str) -> list[str]:
    """Return a dataset's repositories on the hub; empty for local files."""
    card = known_card(dataset)
    files = card.files or "" if card.name else dataset
    named = [name for names in by_split(files).values() for name in names if str(name).startswith(HUB_PREFIX)]
    plain = (name.removeprefix(HUB_PREFIX).partition("@")[0].partition(":")[0] for name in named)
    return list(dict.fromkeys(name for name in plain if name.count("/") == 1))


def model_metadata(
    *,
    name: str,
    library: str,
    dataset: str,
    init: str | None,
    is_generative: bool,
    documents: Mapping[str, EvaluationDocument],
) -> str:
    """Return the metadata of a student's card: base model, task, data, and its results as a model index.

    Args:
        dataset: the run's `--dataset`.
        init: source of the student's weights.
        documents: evaluations by test set.
    """
    base = init.removeprefix(HUB_PREFIX).partition("@")[0] if init and init.startswith(HUB_PREFIX) else None
    results = [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=(repositories_of(document.dataset) or [document.dataset.rpartition("/")[2]])[0],
            dataset_name=document.dataset.rpartition("/")[2],
            dataset_split=document.split,
            metric_type="accuracy",
            metric_name=f"{metric}, {_WAYS[document.protocol]}",
            metric_value=round(value, 2),
        )
        for document in documents.values()
        for metric, value in document.metrics.items()
    ]
    data = ModelCardData(
        library_name=library,
        pipeline_tag="image-text-to-text" if is_generative else "visual-question-answering",
        base_model=base,
        # A student's weights derive from other weights and data, whose terms apply to it.
        license="other",
        license_name="that-of-its-base-model-and-data",
        datasets=repositories_of(dataset) or None,
        tags=["vision-language", "knowledge-distillation", TAG],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def cache_metadata(dataset: str) -> str:
    """Return the metadata of a pushed cache: no viewer, the licence of its data, and the file of its ids."""
    _, licence = licence_of(dataset)
    data = DatasetCardData(
        license=licence or None,
        tags=[TAG],
        viewer=False,
        source_datasets=repositories_of(dataset) or None,
        configs=[{"config_name": "ids", "data_files": IDS_FILE}],
    )
    return str(data.to_yaml())
