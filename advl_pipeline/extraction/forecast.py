"""What an extraction costs: bytes and room from its plan, seconds from two measured batches; when a cache pays."""

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
"""Left free in addition to the cache: for metadata, and so that the system keeps working."""

_SAMPLED_EXAMPLES = 100
"""Whose texts are counted, to learn how many an epoch reads."""

_TRIED_BYTES = 32_000_000
"""Written and read again to learn the speed of a disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Cost of one modality; `seconds` is None without a measurement.

    Token rows were counted in `num_counted` of the units, or estimated by words without the teacher's tokenizer.
    With fewer than all units, rows and bytes are estimates.
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
    """When a cache is cheaper than its teacher in every step; all times are in seconds.

    Encoding and writing the cache takes `once`. An epoch then spends `cached` on reading it at `bytes_per_second`,
    where it would spend `live` on the teacher. `epochs`, over all student runs, is how many it takes until the cache
    is cheaper; None where it never is.
    """

    once: float
    live: float
    cached: float
    bytes_per_second: float
    epochs: int | None


def estimates_of(plan: CachePlan, seconds: Mapping[str, float]) -> tuple[Estimate, ...]:
    """Return the cost of each modality of a plan, with the time where it is known."""
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
    """Return about how long encoding each modality takes: two batches of middling length tell the speed."""
    seconds = {}
    for source in sources:
        placement, rates = plan.placements[source.modality], [0.0]
        batches = [
            batch
            for shard in range(placement.num_shards)
            for batch in plan_batches(
                placement.units_of(shard), placement.lengths_N, batch_size=config.units_per_pass
            )
        ]
        for batch in (batches[len(batches) // 3], batches[2 * len(batches) // 3]):
            if units := list(source.prepare(batch, skip_unreadable=True).units.values()):
                begin = time.perf_counter()
                source.tower.encode(units).on_cpu()
                rates.append((time.perf_counter() - begin) / len(units))
        # The first forward pass also pays for warming up; the second tells more.
        seconds[source.modality] = rates[-1] * placement.num_units
    return seconds


def payback(estimates: Sequence[Estimate], uses: Mapping[str, int], bytes_per_second: tuple[float, float]) -> Payback:
    """Return when a cache pays.

    Args:
        estimates: of modalities, with their seconds; those that `uses` does not name are passed over.
        uses: modality -> how many of its units the examples of an epoch have, repeated ones counted: a teacher in
            every step would encode so many.
        bytes_per_second: of the cache's disk, as `disk_speed` measures it.
    """
    reading, writing = bytes_per_second
    used = [(item, uses[item.modality] / item.num_units) for item in estimates if item.modality in uses]
    once = sum((item.seconds or 0.0) + item.num_bytes / writing for item, _ in used)
    live = sum((item.seconds or 0.0) * often for item, often in used)
    cached = sum(item.num_bytes * often for item, often in used) / reading
    epochs = math.floor(once / (live - cached)) + 1 if live > cached else None
    return Payback(once=once, live=live, cached=cached, bytes_per_second=reading, epochs=epochs)


def uses_per_epoch(dataset: Dataset) -> dict[str, int]:
    """Return modality -> how many of its units all examples have, repeated ones counted; of texts about."""
    if not len(dataset):
        return {"image": len(dataset.image_units()), "text": 0}
    places = np.linspace(0, len(dataset) - 1, min(len(dataset), _SAMPLED_EXAMPLES)).astype(int)
    texts = np.mean([len(dataset[place].candidates) for place in places.tolist()])
    return {"image": len(dataset), "text": round(len(dataset) * float(texts))}


def disk_speed(root: Path) -> tuple[float, float] | None:
    """Measure bytes per second of reading and writing where a cache is to be; None where nothing can be written."""
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
    """Return the free bytes where the cache goes; raises `StorageError` when it would not fit."""
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
