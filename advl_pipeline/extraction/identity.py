"""The identity of a cache that an extraction would write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advl_pipeline.cache.identity import SCHEMA_VERSION
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.selected import SelectedExamples
from advl_pipeline.extraction.config import ExtractConfig
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
        # What is off is left out, so that a new option leaves the identities of caches without it alone.
        "storage": {"dtype": config.stored_dtype}
        | ({"compression": config.compression} if config.compression != "none" else {}),
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
