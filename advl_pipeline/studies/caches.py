"""The teacher caches of a study: how each is extracted, and what need not be done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from advl_pipeline.configuration import build_config
from advl_pipeline.errors import InUse, WeightsUnavailable
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.studies.config import StudyConfig, published_name
from advl_pipeline.studies.plan import CacheNeed

_SECONDS_BETWEEN_LOOKS = 10.0

CachePreparer = Callable[[CacheNeed, StudyConfig, Path | None], float | None]
"""Makes sure that a cache exists. Returns the seconds that extracting took, now or earlier, None if unknown."""


def prepare_cache(need: CacheNeed, study: StudyConfig, data_root: Path | None) -> float | None:
    """Extract a cache; where another process is at it, that one's end is waited for.

    A finished cache of the same options needs no teacher: one whose weights are no longer at hand is taken as it is.
    """
    from advl_pipeline.extraction.planning import is_extracted
    from advl_pipeline.extraction.progress import extraction_seconds
    from advl_pipeline.extraction.run import run_extract

    config = extraction_config(need, study, data_root)
    while not is_extracted(config, same_weights=True):
        try:
            run_extract(config)
            break
        except WeightsUnavailable:
            if is_extracted(config, same_weights=False):
                break
            raise
        except InUse as error:
            tqdm.write(f"{need.path}: waiting for {error.why}", file=sys.stderr)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
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
