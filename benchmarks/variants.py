"""The same features stored as float16, as int8 per token, and compressed: size, speed and what is lost.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.cache.reader import open_cache
from benchmarks.corpus import Corpus
from benchmarks.formats import build_cache

_VARIANTS: dict[str, dict[str, Any]] = {
    "float16": {"stored_dtype": "float16"},
    "int8": {"stored_dtype": "int8"},
    "float16, zstd": {"stored_dtype": "float16", "compression": "zstd"},
    "int8, zstd": {"stored_dtype": "int8", "compression": "zstd"},
}
_COMPARED = 500


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Bytes of the token features, median warm units per second, largest 1 - cosine of a row with the original."""

    name: str
    num_bytes: int
    units_per_second: float
    cosine_error: float


def measure_variants(corpus: Corpus, folder: Path, *, rounds: int, seconds: float) -> list[Variant]:
    """Build each variant and read shuffled padded batches of 64 in turn."""
    for name, settings in _VARIANTS.items():
        if not (folder / name).exists():
            (folder / name).mkdir(parents=True)
            build_cache(folder / name, corpus, **settings)
    rates: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    for number in range(rounds):
        for name in _VARIANTS:
            rates[name].append(_rate(folder / name, number, seconds))
    return [
        Variant(
            name=name,
            num_bytes=sum(path.stat().st_size for path in (folder / name / "text/tokens").rglob("c/*/0")),
            units_per_second=statistics.median(rates[name]),
            cosine_error=_cosine_error(folder / name, corpus),
        )
        for name in _VARIANTS
    ]


def _rate(path: Path, seed: int, seconds: float) -> float:
    store = open_cache(path).stores()["text"]
    stream = store.batches(64, seed=seed)
    units, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for batch in stream:
            units += len(batch.ids)
            if time.perf_counter() - begin >= seconds:
                break
        stream.advance_epoch()
    return units / (time.perf_counter() - begin)


def _cosine_error(path: Path, corpus: Corpus) -> float:
    store = open_cache(path).stores()["text"]
    worst = 0.0
    for number, rows_MD in zip(range(_COMPARED), corpus.units(), strict=False):
        found_MD = store.token_features([corpus.unit_id(number)])[0].astype(np.float64)
        exact_MD = rows_MD.astype(np.float64)
        norms_M = np.linalg.norm(found_MD, axis=1) * np.linalg.norm(exact_MD, axis=1)
        worst = max(worst, float((1 - (found_MD * exact_MD).sum(axis=1) / norms_M).max()))
    return worst
