"""How fast a cache is read on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from advl_pipeline.cache.config import CacheBenchConfig
from advl_pipeline.cache.order import epoch_order
from advl_pipeline.cache.reader import FeatureStore, open_cache

_BYTES_IN_FLIGHT = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ReadRate:
    """Units and bytes of features per second; `way` is "thread" (one reads ahead), "inline" or "look-up" (by id)."""

    modality: str
    way: str
    units_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class CacheBenchResult:
    """Rates of every modality, and how long opening took."""

    path: Path
    open_seconds: float
    rates: tuple[ReadRate, ...]


def run_cache_bench(config: CacheBenchConfig) -> CacheBenchResult:
    """Read shuffled padded batches, and look units up by id, for some seconds each."""
    begin = time.perf_counter()
    cache = open_cache(config.cache)
    opened = time.perf_counter() - begin
    rates = []
    for modality, store in cache.stores().items():
        ways = {
            "thread": _streamed(store, config.batch_size, _BYTES_IN_FLIGHT),
            "inline": _streamed(store, config.batch_size, 0),
            "look-up": _looked_up(store, config.batch_size),
        }
        for way, batches in ways.items():
            units, num_bytes, seconds = _drain(batches, config.seconds)
            rates.append(
                ReadRate(
                    modality=modality,
                    way=way,
                    units_per_second=units / seconds,
                    bytes_per_second=num_bytes / seconds,
                )
            )
    return CacheBenchResult(path=config.cache, open_seconds=opened, rates=tuple(rates))


def _streamed(store: FeatureStore, batch_size: int, bytes_in_flight: int) -> Iterator[tuple[int, int]]:
    stream = store.batches(batch_size, bytes_in_flight=bytes_in_flight)
    while True:
        for batch in stream:
            yield len(batch.ids), batch.num_bytes
        stream.advance_epoch()


def _looked_up(store: FeatureStore, batch_size: int) -> Iterator[tuple[int, int]]:
    ids = store.ids
    for epoch in count():
        order = epoch_order(len(store), seed=0, epoch=epoch)
        for chosen in np.array_split(order, -(-len(order) // batch_size)):
            names = [ids[int(item)] for item in chosen]
            rows = store.global_features(names)
            tokens = store.token_features(names)[0] if store.has_tokens else rows[:0]
            yield len(names), rows.nbytes + tokens.nbytes


def _drain(source: Iterator[tuple[int, int]], limit: float) -> tuple[int, int, float]:
    units = num_bytes = 0
    begin = time.perf_counter()
    for number, size in source:
        units += number
        num_bytes += size
        if time.perf_counter() - begin >= limit:
            break
    return units, num_bytes, time.perf_counter() - begin
