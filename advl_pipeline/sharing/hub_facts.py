"""What the hub's own pages read of a card: the metadata above its text, written by the hub's library.

Only what is known is said: a licence that no card of a dataset states is left out, and so is a base model of this
machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from advl_pipeline.datasets.cards import by_split, known_card
from advl_pipeline.datasets.roots import HUB_PREFIX

TAG = "advl"
"""In the card of all that is pushed: by it a push knows what it may replace."""

IDS_FILE = "ids.parquet"
"""In a pushed cache: the units that it has. The pages of the hub show it instead of the cache, which is Zarr."""

_LICENCES: Mapping[str, str] = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC0": "cc0-1.0",
}
"""How the licence of a card begins -> what the hub calls it."""

_WAYS: Mapping[str, str] = {"likelihood": "likeliest candidate", "letters": "answer written, options behind letters"}
"""How questions were asked, as results say it."""


def licence_of(dataset: str) -> tuple[str, str]:
    """Return the licence of a dataset's data: in words, and as the hub calls it; "" where it is not known."""
    words = str(known_card(dataset).facts.get("licence", ""))
    return words, next((name for start, name in _LICENCES.items() if words.startswith(start)), "")


def repositories_of(dataset: str) -> list[str]:
    """Return the repositories of the hub that a dataset is read from; none for files of this machine."""
    card = known_card(dataset)
    files = card.files or "" if card.name else dataset
    named = [name for names in by_split(files).values() for name in names if str(name).startswith(HUB_PREFIX)]
    plain = (name.removeprefix(HUB_PREFIX).partition("@")[0].partition(":")[0] for name in named)
    return list(dict.fromkeys(name for name in plain if name.count("/") == 1))


def repository_of_weights(init: str | None) -> str:
    """Return the repository of the hub that weights came from; "" for those of this machine, and for none."""
    if not init or not init.startswith(HUB_PREFIX):
        return ""
    return init.removeprefix(HUB_PREFIX).partition("@")[0]


def model_metadata(
    *,
    name: str,
    library: str,
    dataset: str,
    init: str | None,
    is_generative: bool,
    documents: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the metadata of a student's card: base model, task, data, and its results as a model index.

    Args:
        dataset: as the run was given it.
        init: where the student's weights were from.
        documents: evaluations by test set.
    """
    base = repository_of_weights(init)
    results = [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=(repositories_of(document["dataset"]) or [document["dataset"].rpartition("/")[2]])[0],
            dataset_name=str(document["dataset"]).rpartition("/")[2],
            dataset_split=str(document["split"]),
            metric_type="accuracy",
            metric_name=f"{metric}, {_WAYS[document.get('protocol', 'likelihood')]}",
            metric_value=round(value, 2),
        )
        for document in documents.values()
        for metric, value in document["metrics"].items()
    ]
    data = ModelCardData(
        library_name=library,
        pipeline_tag="image-text-to-text" if is_generative else "visual-question-answering",
        base_model=base or None,
        # A student's weights come from others' weights and data, whose terms hold for it.
        license="other",
        license_name="that-of-its-base-model-and-data",
        datasets=repositories_of(dataset) or None,
        tags=["vision-language", "knowledge-distillation", TAG],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def cache_metadata(dataset: str) -> str:
    """Return the metadata of a pushed cache: no viewer, the licence of its data, and where its ids are."""
    _, licence = licence_of(dataset)
    data = DatasetCardData(
        license=licence or None,
        tags=[TAG],
        viewer=False,
        source_datasets=repositories_of(dataset) or None,
        configs=[{"config_name": "ids", "data_files": IDS_FILE}],
    )
    return str(data.to_yaml())
