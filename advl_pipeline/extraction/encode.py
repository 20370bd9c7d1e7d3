"""The encode loop: batches made ready ahead, the forward pass, features written behind.

Three kinds of thread: some prepare, one encodes, the caller's writes. Between them at most a few batches wait.
Batches are made ready beyond the end of a shard, which may hold fewer of them than there are threads.

Which units share a forward pass is a pure function of the shard, so that a resumed run computes the same numbers.
Units of one shard are sorted by length, so a batch holds units of like length and pads little. Batches never cross
shards, and long ones come first, so that too large a batch shows itself at once.

Features on their way from the device that computed them are halved there where they are stored so, then copied. A
copy begins when the features are requested and continues while the device computes the next batch; who writes them
waits for it. What was computed on the CPU is there already, and the writer halves it.

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
"""Prepared batches that wait, in addition to those in preparation."""

_BATCHES_BEHIND = 4
"""Batches of features that wait to be written."""


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
        num_workers: threads that make batches ready.
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
                        # A device is given the next batch while it computes this one, and no more.
                        if before is not None:
                            before.wait()
                        before = copy
                # It continues once there is room for the next one.
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
    """A batch of features that is being copied to memory; `clipped` counts values beyond the stored range."""

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
        """Return the features once they are in memory."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._encoded

    @staticmethod
    def _copied(values: torch.Tensor) -> torch.Tensor:
        if values.device.type != "cuda":
            return values.cpu()
        # The device writes into memory that is never paged out, without this thread.
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def halved(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to float16 and clip what is beyond its range, but infinity; return also how many were clipped, ()."""
    is_beyond = (values.abs() > FLOAT16_MAX) & values.isfinite()
    clipped = torch.where(is_beyond, values.clamp(-FLOAT16_MAX, FLOAT16_MAX), values)
    return clipped.half(), is_beyond.sum()


SMALLEST, LARGEST = 8, 1024

_FASTER = 1.05
"""A larger batch is taken where it encodes so much more in the same time: it also takes more memory."""

_LOOKED_AT, _TRIED = 64, 8
"""Units that are made ready, and those with most tokens among them, which stand for a batch of any size."""


def with_batch_size(config: ExtractConfig, sources: Sequence[Source]) -> ExtractConfig:
    """Return the configuration with a number of units per forward pass instead of auto.

    Both modalities have the same: the smaller of what was found for each.
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
            # The first pass of a size also pays for what a device prepares for it.
            for _ in range(2):
                began = time.perf_counter()
                source.tower.encode(units).on_cpu()
                rate = size / (time.perf_counter() - began)
        except torch.OutOfMemoryError:
            # Half of it did fit; half of that leaves room for units that are longer than those that were tried.
            return max(1, min(best, size // 4))
        if rate < _FASTER * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best
