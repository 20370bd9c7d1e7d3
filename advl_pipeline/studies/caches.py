"""The teacher caches of a study: how each is extracted, and what need not be done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import build_config
from advl_pipeline.errors import WeightsUnavailable
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.studies.config import StudyConfig, published_name
from advl_pipeline.studies.plan import CacheNeed

CachePreparer = Callable[[CacheNeed, StudyConfig, Path | None], float | None]
"""Makes sure that a cache exists. Returns the seconds that extracting took, now or earlier, None if unknown."""


def prepare_cache(need: CacheNeed, study: StudyConfig, data_root: Path | None) -> float | None:
    """Extract a cache; several processes that need the same one share its shards.

    A finished cache of the same options needs no teacher: one whose weights are no longer at hand is taken as it is.
    """
    from advl_pipeline.extraction.identity import is_extracted
    from advl_pipeline.extraction.progress import extraction_seconds
    from advl_pipeline.extraction.run import run_extract

    config = extraction_config(need, study, data_root)
    if not is_extracted(config, same_weights=True):
        try:
            run_extract(config)
        except WeightsUnavailable:
            if not is_extracted(config, same_weights=False):
                raise
    return extraction_seconds(need.path)


def extraction_config(need: CacheNeed, study: StudyConfig, data_root: Path | None) -> ExtractConfig:
    """Return how a study extracts a cache that it needs."""
    common = {key: value for key, value in study.extraction.items() if key != "weights"}
    values: Mapping[str, Any] = {
        "teacher": need.teacher,
        "dataset": need.dataset,
        "split": need.split,
        "output": need.path,
        "data_root": data_root,
        "weights": _weights_of(need.teacher, study),
    } | ({} if need.shots is None else {"shots": need.shots, "seed": [need.seed]})
    return build_config(ExtractConfig, common, values, where=f"{study.source} [extraction]")


def _weights_of(teacher: str, study: StudyConfig) -> str | None:
    weights = study.extraction.get("weights")
    if isinstance(weights, Mapping):
        found: str | None = weights.get(published_name(teacher))
        return found
    return weights
