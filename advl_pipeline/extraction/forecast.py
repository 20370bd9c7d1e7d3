"""Cost of an extraction: bytes from its plan, seconds from a measured batch, and the payback of a cache."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advl_pipeline.base.errors import StorageError
from advl_pipeline.base.folders import nearest_existing
from advl_pipeline.cache.writer import CachePlan
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.encode import plan_batches
from advl_pipeline.extraction.sources import Source

_SPARE_BYTES = 64_000_000
"""Space to leave free besides the cache, for metadata and to keep the system working."""

_SAMPLED_EXAMPLES = 100
"""Examples whose texts are counted to estimate how many an epoch reads."""

_TRIED_BYTES = 32_000_000
"""Bytes written and read to measure the speed of a disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Cost of one modality; `seconds` is None without a measurement.

    Token rows were counted in `num_counted` of the units, or estimated from words without the teacher's tokenizer.
    If not all units were counted, rows and bytes are estimates.
    """

    modality: str
    num_units: int
    num_counted: int
    num_token_rows: int
    num_shards: int
    num_bytes: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Payback:
    """Break-even point of a cache against running its teacher in every step; all times are in seconds.

    Encoding and writing the cache takes `once`. An epoch then spends `cached` on reading it at `bytes_per_second`,
    instead of `live` on the teacher. `epochs`, over all student runs, is the number after which the cache is cheaper;
    None if it never is.
    """

    once: float
    live: float
    cached: float
    bytes_per_second: float
    epochs: int | None


def estimates_of(plan: CachePlan, seconds: Mapping[str, float]) -> tuple[Estimate, ...]:
    """Return the cost of each modality of a plan, with the time if it is known."""
    return tuple(
        Estimate(
            modality=modality,
            num_units=placement.num_units,
            num_counted=plan.num_counted[modality],
            num_token_rows=int(placement.lengths_N.sum()),
            num_shards=placement.num_shards,
            num_bytes=plan.num_bytes(modality),
            seconds=seconds.get(modality),
        )
        for modality, placement in plan.placements.items()
    )


def measured_seconds(config: ExtractConfig, sources: Sequence[Source], plan: CachePlan) -> dict[str, float]:
    """Estimate the encoding time of each modality from a batch of medium length."""
    seconds = {}
    for source in sources:
        placement, rate = plan.placements[source.modality], 0.0
        batches = [
            batch
            for shard in range(placement.num_shards)
            for batch in plan_batches(
                placement.units_of(shard), placement.lengths_N, batch_size=config.units_per_pass
            )
        ]
        for batch in (batches[len(batches) // 2], batches[0]):
            if units := list(source.prepare(batch, skip_unreadable=True).units.values()):
                # The first forward pass includes the warm-up.
                source.tower.encode(units[:1]).on_cpu()
                begin = time.perf_counter()
                source.tower.encode(units).on_cpu()
                rate = (time.perf_counter() - begin) / len(units)
                break
        seconds[source.modality] = rate * placement.num_units
    return seconds


def payback(estimates: Sequence[Estimate], uses: Mapping[str, int], bytes_per_second: tuple[float, float]) -> Payback:
    """Return the payback of a cache.

    Args:
        estimates: costs of modalities, with their seconds; modalities that are not in `uses` are ignored.
        uses: modality -> number of its units in the examples of an epoch, with repeats: a teacher in every step would
            encode all of these.
        bytes_per_second: speed of the cache's disk from `disk_speed`.
    """
    reading, writing = bytes_per_second
    used = [(item, uses[item.modality] / item.num_units) for item in estimates if item.modality in uses]
    once = sum((item.seconds or 0.0) + item.num_bytes / writing for item, _ in used)
    live = sum((item.seconds or 0.0) * often for item, often in used)
    cached = sum(item.num_bytes * often for item, often in used) / reading
    epochs = math.floor(once / (live - cached)) + 1 if live > cached else None
    return Payback(once=once, live=live, cached=cached, bytes_per_second=reading, epochs=epochs)


def uses_per_epoch(dataset: Dataset) -> dict[str, int]:
    """Return modality -> number of its units in all examples, with repeats; an estimate for texts."""
    if not len(dataset):
        return {"image": len(dataset.image_units()), "text": 0}
    places = np.linspace(0, len(dataset) - 1, min(len(dataset), _SAMPLED_EXAMPLES)).astype(int)
    texts = np.mean([len(dataset[place].candidates) for place in places.tolist()])
    return {"image": len(dataset), "text": round(len(dataset) * float(texts))}


def disk_speed(root: Path) -> tuple[float, float] | None:
    """Measure bytes per second of reads and writes at a cache's future location; None if it is not writable."""
    content = os.urandom(_TRIED_BYTES)
    with suppress(OSError), tempfile.TemporaryFile(dir=nearest_existing(root)) as file:
        begin = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        before = time.perf_counter()
        file.read()
        return _TRIED_BYTES / (time.perf_counter() - before), _TRIED_BYTES / (written - begin)
    return None


def require_room(root: Path, num_bytes: int) -> int:
    """Return the free bytes at the cache's location; raises `StorageError` if the cache would not fit."""
    free = shutil.disk_usage(nearest_existing(root)).free
    if num_bytes + _SPARE_BYTES > free:
        raise StorageError(
            "There is not enough room for the cache.",
            where=str(root),
            why=f"about {num_bytes / 1e6:.1f} MB are needed and {_SPARE_BYTES / 1e6:.0f} MB are to stay free, "
            f"{free / 1e6:.1f} MB are free",
            next_command="make room, or give another --output",
        )
    return free
