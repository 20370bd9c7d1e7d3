"""The encode loop: batches prepared ahead, the forward pass, features written in the background.

Some threads prepare batches, one encodes, and the caller's thread writes. At most a few batches wait between them.
Batches are prepared beyond the end of a shard, since a shard may have fewer batches than there are threads.

The units of a forward pass are a pure function of the shard, so a resumed run computes the same numbers. Units of a
shard are sorted by length, so a batch has units of similar length and little padding. Batches never cross shards. The
longest come first, so a batch size that does not fit fails at once.

If features are stored in float16, the GPU converts them before the copy to the host. The copy runs while the device
computes the next batch, and the writer waits for it. Features computed on the CPU need no copy, and the writer
converts them.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, groupby, islice
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.prefetch import Prefetcher, in_order
from advl_pipeline.cache.quantise import FLOAT16_MAX, StoredDtype
from advl_pipeline.cache.shard_buffer import ShardBuffer
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.progress import Progress
from advl_pipeline.extraction.sources import PreparedBatch, Source
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit

BATCHES_READY = 2
"""Prepared batches in the queue, in addition to those in preparation."""

_BATCHES_BEHIND = 4
"""Batches of features that may wait to be written."""


def encode_shards(
    source: Source,
    writer: CacheWriter,
    shards: Sequence[int],
    *,
    batch_size: int,
    skip_unreadable: bool,
    num_workers: int,
    progress: Progress,
) -> None:
    """Encode the units of shards and commit them, one shard after another.

    Args:
        num_workers: threads that prepare batches.
    """
    placement = writer.placement(source.modality)
    plans = (
        (shard, units)
        for shard in shards
        for units in plan_batches(placement.units_of(shard), placement.lengths_N, batch_size=batch_size)
    )

    def prepare(plan: tuple[int, list[int]]) -> tuple[int, PreparedBatch]:
        return plan[0], source.prepare(plan[1], skip_unreadable=skip_unreadable)

    def encoded() -> Iterator[tuple[int, PreparedBatch, HostCopy | None]]:
        ready = partial(in_order, prepare, plans, num_workers=num_workers, name="advl-read")
        before: HostCopy | None = None
        with Prefetcher(ready, limit=BATCHES_READY) as stream:
            for shard, batch in stream:
                progress.seconds["read"] = stream.seconds_waited
                copy = None
                if units := list(batch.units.values()):
                    with progress.stage("encode"):
                        copy = HostCopy(source.tower.encode(units), writer.plan.stored_dtype)
                        # Queue at most one batch on the device ahead of the one that it computes.
                        if before is not None:
                            before.wait()
                        before = copy
                # `yield` returns when the queue has room for the next batch.
                with progress.stage("write"):
                    yield shard, batch, copy

    with Prefetcher(encoded, limit=_BATCHES_BEHIND, name="advl-encode") as features:
        for shard, batches in groupby(features, key=itemgetter(0)):
            buffer = writer.new_buffer(source.modality, shard)
            for _, batch, copy in batches:
                for position, reason in batch.unreadable.items():
                    buffer.quarantine(position, reason)
                if copy is not None:
                    _put(buffer, batch.units, copy)
                progress.advance(len(batch.units) + len(batch.unreadable))
            writer.commit_shard(source.modality, buffer)


def _put(buffer: ShardBuffer, units: Mapping[int, PreparedUnit], copy: HostCopy) -> None:
    encoded = copy.wait()
    buffer.clipped += copy.clipped
    global_ND = encoded.global_ND.numpy()
    stats = {name: values.tolist() for name, values in encoded.stats.items()}
    for row, (position, prepared) in enumerate(units.items()):
        per_token = {"char_spans": prepared.char_spans_M2, "kept": prepared.kept_M, **prepared.regions}
        buffer.put(
            position,
            global_D=global_ND[row],
            values_MD=encoded.token_values[row].numpy(),
            stats={name: values[row] for name, values in stats.items()},
            per_token={name: rows for name, rows in per_token.items() if rows is not None},
        )


def plan_batches(units: range, lengths_N: npt.NDArray[np.int32], *, batch_size: int) -> list[list[int]]:
    """Cut the units of a shard into batches.

    Args:
        units: positions of the shard's units.
        lengths_N: token rows of every unit of the modality.
    """
    if batch_size < 1:
        raise ConfigError(f"A batch cannot hold {batch_size} units.", where="--batch-size")
    order = np.argsort(-lengths_N[units.start : units.stop].astype(np.int64), kind="stable") + units.start
    return [order[first : first + batch_size].tolist() for first in range(0, len(order), batch_size)]


class HostCopy:
    """An asynchronous copy of a batch of features to the host; `clipped` counts values beyond the stored range."""

    def __init__(self, encoded: EncodedBatch, stored: StoredDtype) -> None:
        self._is_there: torch.cuda.Event | None = None
        self._encoded = encoded
        self._clipped = torch.zeros((), dtype=torch.int64)
        if encoded.global_ND.device.type == "cpu":
            return
        with torch.inference_mode():
            lengths = [len(values) for values in encoded.token_values]
            rows_MD = torch.cat(list(encoded.token_values))
            global_ND = encoded.global_ND
            if stored == "float16":
                (global_ND, clipped), (rows_MD, also_clipped) = halved(global_ND), halved(rows_MD)
                self._clipped = self._copied(clipped + also_clipped)
            self._encoded = EncodedBatch(
                global_ND=self._copied(global_ND),
                token_values=torch.split(self._copied(rows_MD), lengths),
                stats={name: self._copied(values) for name, values in encoded.stats.items()},
            )
            if encoded.global_ND.device.type == "cuda":
                self._is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._is_there.record(torch.cuda.current_stream(encoded.global_ND.device))

    @property
    def clipped(self) -> int:
        return int(self._clipped)

    def wait(self) -> EncodedBatch:
        """Wait for the copy and return the features."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._encoded

    @staticmethod
    def _copied(values: torch.Tensor) -> torch.Tensor:
        if values.device.type != "cuda":
            return values.cpu()
        # Into pinned memory the device copies without blocking this thread.
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def halved(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to float16 and clip finite values beyond its range; return also the number of clipped values, ()."""
    is_beyond = (values.abs() > FLOAT16_MAX) & values.isfinite()
    clipped = torch.where(is_beyond, values.clamp(-FLOAT16_MAX, FLOAT16_MAX), values)
    return clipped.half(), is_beyond.sum()


SMALLEST, LARGEST = 8, 1024

_FASTER = 1.05
"""Minimum speed-up for a larger batch, since it also takes more memory."""

_LOOKED_AT, _TRIED = 64, 8
"""Units to prepare, and the number of longest ones among them, which are repeated to fill a batch of any size."""


def with_batch_size(config: ExtractConfig, sources: Sequence[Source]) -> ExtractConfig:
    """Return the configuration with the fastest measured batch size instead of auto.

    Both modalities share one batch size, the smaller of the two.
    """
    if config.batch_size != "auto":
        return config
    best_sizes = {source.modality: _fastest(source) for source in sources}
    sizes = ", ".join(f"{size} units of {modality}" for modality, size in best_sizes.items())
    tqdm.write(
        f"batch size: {min(best_sizes.values())}, as this machine encodes fastest {sizes} at once", file=sys.stderr
    )
    return replace(config, batch_size=min(best_sizes.values()))


def _fastest(source: Source) -> int:
    num_units = len(source.unit_ids())
    looked_at = np.unique(np.linspace(0, num_units - 1, _LOOKED_AT).astype(np.int64)).tolist()
    if source.modality == "image":
        looked_at = looked_at[:: max(1, len(looked_at) // _TRIED)]
    prepared = source.prepare(looked_at, skip_unreadable=True).units
    if not prepared:
        return SMALLEST
    longest = sorted(prepared.values(), key=lambda unit: unit.num_tokens)[-_TRIED:]
    best, best_rate, size = SMALLEST, 0.0, SMALLEST
    while size <= LARGEST:
        units = list(islice(cycle(longest), size))
        try:
            # The first pass of a size includes the device's warm-up.
            for _ in range(2):
                began = time.perf_counter()
                source.tower.encode(units).on_cpu()
                rate = size / (time.perf_counter() - began)
        except torch.OutOfMemoryError:
            # Half of this size fitted; a quarter leaves memory for units longer than the tried ones.
            return max(1, min(best, size // 4))
        if rate < _FASTER * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best
