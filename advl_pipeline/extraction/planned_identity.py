"""The identity of a cache that an extraction would write, and whether a finished cache of it is there already.

The latter is told without the teacher: a finished cache must not ask for weights again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.cache.identity import SCHEMA_VERSION
from advl_pipeline.cache.provenance import PROVENANCE_FILE
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import read_json
from advl_pipeline.cache.stores import open_store
from advl_pipeline.compute import AUTO
from advl_pipeline.configuration import config_to_dict, options_without
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.views import SelectedExamples
from advl_pipeline.extraction.config import ExtractConfig, location_of
from advl_pipeline.extraction.part import open_part
from advl_pipeline.extraction.sources import Source, image_tokens_of
from advl_pipeline.teachers.interface import Teacher


def build_identity(
    config: ExtractConfig, teacher: Teacher, dataset: Dataset, sources: Sequence[Source]
) -> dict[str, Any]:
    """Return everything that changes the numbers, as plain JSON types; never paths, versions or the device."""
    towers = {source.modality: source.tower.describe() for source in sources}
    return {
        "schema_version": SCHEMA_VERSION,
        "teacher": {
            "name": teacher.name,
            "aligned": teacher.aligned,
            "logit_scale": teacher.logit_scale,
            "image": towers.get("image"),
            "text": towers.get("text"),
            "image_tokens": image_tokens_of(config, dataset) if "image" in towers else None,
            "compute_dtype": config.compute_dtype,
        },
        "dataset": describe_dataset(dataset),
        "storage": {"dtype": config.stored_dtype},
    }


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return what of the identity is the dataset's; the part that is selected, if it is not the whole split."""
    whole = {
        "name": dataset.identity_name,
        "split": dataset.split,
        "tasks": list(dataset.tasks),
        "text_style": dataset.text_style,
        "content_digest": dataset.content_digest(),
    }
    return whole | ({"selection": dataset.selection} if isinstance(dataset, SelectedExamples) else {})


def as_begun(config: ExtractConfig) -> ExtractConfig:
    """Return the configuration with the precision and the batches of what was begun in its place, where it leaves
    these open.

    A machine with a GPU goes on in fp32 with what one without has begun.
    """
    left_open = [name for name in ("mixed_precision", "batch_size") if getattr(config, name) == AUTO]
    if not left_open:
        return config
    store = open_store(location_of(config), config.disk_cache_config)
    if PROVENANCE_FILE not in store.list("records"):
        return config
    begun = read_json(store, PROVENANCE_FILE).get("config", {})
    return replace(config, **{name: begun.get(name, AUTO) for name in left_open})


def is_extracted(config: ExtractConfig, *, same_weights: bool) -> bool:
    """Tell whether a whole cache of these options and of the dataset's present content lies where it would go.

    Args:
        same_weights: it must also have been made with the same `weights`. Without, nobody has compared the teacher.

    Raises:
        DatasetError: the dataset is missing or malformed. CorruptCache: the cache is damaged.
    """
    location = location_of(config)
    if COMPLETE_RECORD not in open_store(location).list("records"):
        return False
    cache = open_cache(location)
    made, asked = cache.provenance["config"], config_to_dict(as_begun(config))
    compared = options_without(ExtractConfig, asked, "content", "beside", "none")
    if any(made.get(key) != value for key, value in compared.items()):
        return False
    if same_weights and made.get("weights") != asked["weights"]:
        return False
    return bool(cache.identity["dataset"] == describe_dataset(open_part(config)))
