"""`advl cache verify`: check the bytes and, on request, encode some units again with the teacher.

A cache's record names the teacher and the data of its extraction. A cache may come from anyone, so paths in its
record are printed, but never opened or written to. The exception is a cache with the extraction journal next to it:
it was extracted here, so its units are checked against the data named in the record.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.base.compute import resolved
from advl_pipeline.base.configuration import (
    ANY,
    build_config,
    command_words,
    option_values,
    options_of_now,
    options_without,
)
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.identity import IMPORTED
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import journal_path
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.verify import VerifyReport, verify_cache
from advl_pipeline.datasets.roots import recorded_paths, refused_paths
from advl_pipeline.extraction.config import ExtractConfig, ImportedExtraction, RecomputeOptions, VerifyConfig

if TYPE_CHECKING:
    # Bytes can also be checked on a machine that cannot run the teacher.
    from advl_pipeline.datasets.records import Dataset
    from advl_pipeline.extraction.prepare import Selection
    from advl_pipeline.teachers.interface import Teacher

COSINE_TOLERANCE = 1e-3
"""Largest 1 - cosine between a stored row and the same row computed again, alone in its batch, on any machine."""

_NORM_TOLERANCE = 1e-2

_INT8_COSINE_TOLERANCE = 1e-2


def run_verify(config: VerifyConfig) -> VerifyReport:
    """Check a cache.

    Raises:
        ConfigError: there is no cache, or units must be computed again and the record names paths that were not
            given.
        WeightsUnavailable: units must be computed again, and the teacher is not available.
    """
    total = sum(open_store(config.cache).list().values())
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True) as bar:
        report = verify_cache(config.cache, progress=bar.update)
    if not config.recompute or not report.is_sound:
        return report
    settings = open_cache(config.cache).provenance["config"]
    if isinstance(config.cache, Path) and journal_path(config.cache).is_file():
        # The cache was extracted here, so the data named in its record are the user's own.
        config = replace(
            config,
            dataset=config.dataset or settings.get("dataset"),
            data_root=config.data_root or (Path(settings["data_root"]) if settings.get("data_root") else None),
        )
    extraction = resolved(recorded_extraction(settings, config, command="cache verify"))
    with ExitStack() as stack:
        teacher, dataset = open_recorded(extraction, stack)
        return recompute(report, extraction, teacher, dataset, count=config.recompute)


_GONE: Mapping[str, Any] = {
    "text_units": "question",
    "select_tokens": None,
    # Compressed caches were refused before.
    **dict.fromkeys(
        ("compression", "disk_cache", "disk_cache_gb", "progress_file", "region_naming", "region_split"), ANY
    ),
}
"""Options of earlier versions; see `options_of_now`."""


def recorded_extraction(settings: Mapping[str, Any], config: RecomputeOptions, *, command: str) -> ExtractConfig:
    """Return the extraction described by a cache's record, with the paths given by the user.

    Args:
        settings: options of the extraction, from the record.
        config: configuration of the command that encodes units again; its options override the record's.
        command: the words of that command, such as "cache repair".

    Raises:
        ConfigError: the record names a path that the user did not give, or options that cannot be used.
    """
    options = {name: value for name, value in option_values(config).items() if value is not None and value != ()}

    def refused(option: str) -> ConfigError:
        return ConfigError(
            "Units of this cache cannot be encoded again.",
            where=str(config.cache),
            why=f"it was made with an option that is gone, {option}",
        )

    recorded = options_of_now(options_without(ExtractConfig, settings, "none"), _GONE, refused=refused)
    made_as: type[ExtractConfig] = ExtractConfig
    named = recorded_paths(recorded)
    if str(settings.get("teacher", "")).startswith(IMPORTED):
        made_as, named = ImportedExtraction, {"source": "FILE", **named}
    missing = {name: value for name, value in named.items() if name not in options}
    if missing:
        words = command_words(type(config), {**options, **missing, "cache": None})
        raise refused_paths(config.cache, missing, ["advl", *command.split(), str(config.cache), *words])
    known = {field.name for field in dataclasses.fields(made_as)}
    where = f"{config.cache}/records/provenance.json"
    return build_config(made_as, recorded, {name: options[name] for name in known & options.keys()}, where=where)


def open_recorded(config: ExtractConfig, stack: ExitStack) -> tuple[Teacher, Selection]:
    """Open the dataset of a recorded extraction, and its teacher or the files of its imported features.

    Args:
        stack: closes the files.
    """
    from advl_pipeline.extraction.run import open_teacher_and_data

    if not isinstance(config, ImportedExtraction):
        return open_teacher_and_data(config)
    from advl_pipeline.extraction.imports.tower import open_tower
    from advl_pipeline.extraction.prepare import open_part
    from advl_pipeline.teachers.interface import Teacher

    dataset = open_part(config)
    return Teacher(name=config.teacher, image=open_tower(config, dataset.image_units(), stack)), dataset


def recompute(
    report: VerifyReport, config: ExtractConfig, teacher: Teacher, dataset: Dataset, *, count: int
) -> VerifyReport:
    """Encode `count` sampled units of each modality again and compare them with the stored features."""
    from advl_pipeline.extraction.sources import open_sources

    cache = open_cache(report.path)
    findings = dict(report.findings)
    worst = 0.0
    recomputed = 0
    for source in open_sources(config, teacher, dataset):
        store = cache.stores()[source.modality]
        tolerance = _INT8_COSINE_TOLERANCE if config.stored_dtype == "int8" else COSINE_TOLERANCE
        chosen = np.random.default_rng(0).permutation(len(source.unit_ids()))[:count]
        for unit in np.sort(chosen).tolist():
            unit_id = source.unit_ids()[unit].tobytes().hex()
            if unit_id in store.quarantined:
                continue
            prepared = source.prepare([unit], skip_unreadable=False).units
            encoded = source.tower.encode(list(prepared.values())).on_cpu()
            pairs = [(store.global_features([unit_id]), encoded.global_ND.numpy())]
            if store.has_tokens:
                pairs.append((store.token_features([unit_id])[0], encoded.token_values[0].numpy()))
            error = max(row_error(stored, computed) for stored, computed in pairs)
            recomputed += 1
            worst = max(worst, error)
            if error > tolerance:
                path = f"{source.modality}/tokens/values"
                problem = f"unit {unit_id} is not what the teacher gives: 1 - cosine {error:.2g} > {tolerance}"
                findings[path] = f"{findings[path]}; {problem}" if path in findings else problem
    return replace(report, findings=findings, recomputed=recomputed, worst=worst)


def row_error(stored_MD: npt.NDArray[np.generic], computed_MD: npt.NDArray[np.float32]) -> float:
    """Return the largest 1 - cosine over rows, or 2 if the shapes or the norms (by over one percent) differ."""
    if stored_MD.shape != computed_MD.shape:
        return 2.0
    if len(stored_MD) == 0:
        return 0.0
    left_MD, right_MD = stored_MD.astype(np.float64), computed_MD.astype(np.float64)
    left_M, right_M = np.linalg.norm(left_MD, axis=1), np.linalg.norm(right_MD, axis=1)
    if (np.abs(left_M - right_M) > _NORM_TOLERANCE * np.maximum(right_M, 1e-6)).any():
        return 2.0
    scale_M = np.where(left_M * right_M > 0, left_M * right_M, 1.0)
    cosine_M = np.where(right_M > 0, (left_MD * right_MD).sum(axis=1) / scale_M, 1.0)
    return float(max(0.0, (1.0 - cosine_M).max()))
