"""`advl cache verify`: the bytes, and on request some units encoded again by the teacher.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.verify import Finding, VerifyReport, verify_cache
from advl_pipeline.compute import resolved
from advl_pipeline.extraction.config import ExtractConfig, VerifyConfig

if TYPE_CHECKING:
    # Bytes are checked where no teacher can run.
    from advl_pipeline.datasets.records import Dataset
    from advl_pipeline.teachers.interface import Teacher

COSINE_TOLERANCE = 1e-3
"""Largest 1 - cosine between a stored row and the same row computed again, alone in its batch, on any machine."""

_NORM_TOLERANCE = 1e-2
_INT8_COSINE_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """Findings of the bytes and of the units that were computed again; `worst` is the largest 1 - cosine met."""

    report: VerifyReport
    recomputed: int
    worst: float


def run_verify(config: VerifyConfig) -> VerifyResult:
    """Check a cache.

    Raises:
        ConfigError: there is no cache, or units are to be computed again and its record names paths that were not
            given.
        WeightsUnavailable: units are to be computed again, and the teacher is not at hand.
    """
    total = sum(open_store(config.cache).list().values())
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True) as bar:
        report = verify_cache(config.cache, progress=bar.update)
    if not config.recompute or not report.is_sound:
        return VerifyResult(report=report, recomputed=0, worst=0.0)
    from advl_pipeline.extraction.recorded import open_recorded, recorded_extraction

    settings = open_cache(config.cache).provenance["config"]
    extraction = resolved(recorded_extraction(settings, config, command="cache verify"))
    with ExitStack() as stack:
        teacher, dataset = open_recorded(extraction, stack)
        return recompute(report, extraction, teacher, dataset, count=config.recompute, seed=config.seed)


def recompute(
    report: VerifyReport, config: ExtractConfig, teacher: Teacher, dataset: Dataset, *, count: int, seed: int
) -> VerifyResult:
    """Encode `count` sampled units of each modality again and compare them with what is stored."""
    from advl_pipeline.extraction.sources import open_sources

    cache = open_cache(report.path)
    findings = list(report.findings)
    worst = 0.0
    recomputed = 0
    for source in open_sources(config, teacher, dataset):
        store = cache.stores()[source.modality]
        tolerance = _INT8_COSINE_TOLERANCE if config.stored_dtype == "int8" else COSINE_TOLERANCE
        chosen = np.random.default_rng(seed).permutation(len(source.unit_ids()))[:count]
        for unit in np.sort(chosen).tolist():
            unit_id = source.unit_ids()[unit].tobytes().hex()
            if unit_id in store.quarantined:
                continue
            encoded = source.tower.encode(source.prepare([unit], skip_unreadable=False).prepared).on_cpu()
            pairs = [(store.global_features([unit_id]), encoded.global_ND.numpy())]
            if store.has_tokens:
                pairs.append((store.token_features([unit_id])[0], encoded.token_values[0].numpy()))
            error = max(row_error(stored, computed) for stored, computed in pairs)
            recomputed += 1
            worst = max(worst, error)
            if error > tolerance:
                findings.append(
                    Finding(
                        path=f"{source.modality}/tokens/values",
                        problem=f"unit {unit_id} is not what the teacher gives: 1 - cosine {error:.2g} > {tolerance}",
                    )
                )
    return VerifyResult(
        report=replace(report, findings=tuple(findings)),
        recomputed=recomputed,
        worst=worst,
    )


def row_error(stored_MD: npt.NDArray[np.generic], computed_MD: npt.NDArray[np.float32]) -> float:
    """Return the largest 1 - cosine over rows, or 2 where the shapes or the norms (by over one percent) differ."""
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
