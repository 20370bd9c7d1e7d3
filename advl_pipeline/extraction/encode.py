"""The encode loop: batches made ready ahead, the forward pass, features written behind.

Three kinds of thread: some prepare, the caller's encodes, one writes. Between them at most a few batches wait.
Batches are made ready beyond the end of a shard, which may hold fewer of them than there are threads.

Which units share a forward pass is a pure function of the shard, so that a resumed run computes the same numbers.
Units of one shard are sorted by length, so a batch holds units of like length and pads little. Batches never cross
shards, and long ones come first, so that too large a batch shows itself at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.shard_buffer import ShardBuffer
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import ConfigError
from advl_pipeline.extraction.progress import Progress
from advl_pipeline.extraction.sources import PreparedBatch, Source
from advl_pipeline.extraction.to_host import HostCopy

BATCHES_READY = 2
"""Batches that lie ready beside those that are being made ready."""

_TASKS_BEHIND = 4


@dataclass(kw_only=True)
class WriteBehind:
    """Runs tasks in order in one thread, with a bounded backlog; an error surfaces at the next call.

    After a task has failed none runs: what follows it, such as a shard's commit, builds on it.
    """

    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="advl-write"))
    _backlog: deque[Future[None]] = field(default_factory=deque)
    _has_failed: bool = False

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task, waiting while too many are queued."""
        while len(self._backlog) >= _TASKS_BEHIND:
            self._backlog.popleft().result()
        self._backlog.append(self._pool.submit(self._run, task))

    def _run(self, task: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            task()
        except BaseException:
            self._has_failed = True
            raise

    def drain(self) -> None:
        """Wait for everything queued."""
        while self._backlog:
            self._backlog.popleft().result()

    def close(self) -> None:
        """Drop what has not begun and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def encode_shards(
    source: Source,
    writer: CacheWriter,
    shards: Sequence[int],
    *,
    batch_size: int,
    skip_unreadable: bool,
    num_workers: int,
    behind: WriteBehind,
    progress: Progress,
) -> None:
    """Encode the units of shards, one shard after another; the commit of each is queued as its last task of `behind`.

    Args:
        num_workers: threads that make batches ready.
    """
    placement = writer.placement(source.modality)
    plans = (
        (shard, units)
        for shard in shards
        for units in plan_batches(placement.units_of(shard), placement.lengths_N, batch_size=batch_size)
    )
    before: HostCopy | None = None
    with closing(
        _prepare_ahead(source, plans, progress, num_workers=num_workers, skip_unreadable=skip_unreadable)
    ) as stream:
        for shard, batches in groupby(stream, key=itemgetter(0)):
            buffer = writer.new_buffer(source.modality, shard)
            for _, prepared in batches:
                copy = None
                if prepared.units:
                    with progress.stage("encode"):
                        copy = HostCopy(source.tower.encode(prepared.prepared), writer.plan.stored_dtype)
                        # A device is given the next batch while it computes this one, and no more.
                        if before is not None:
                            before.wait()
                        before = copy
                with progress.stage("write"):
                    behind.submit(_putting(buffer, prepared, copy))
                progress.advance(len(prepared.units) + len(prepared.unreadable))
            with progress.stage("write"):
                behind.submit(partial(writer.commit_shard, source.modality, buffer))


def _prepare_ahead(
    source: Source,
    plans: Iterable[tuple[int, list[int]]],
    progress: Progress,
    *,
    num_workers: int,
    skip_unreadable: bool,
) -> Generator[tuple[int, PreparedBatch]]:
    waiting: deque[tuple[int, Future[PreparedBatch]]] = deque()
    upcoming = iter(plans)
    with ThreadPoolExecutor(num_workers, thread_name_prefix="advl-read") as pool:
        try:
            while True:
                while len(waiting) < num_workers + BATCHES_READY and (plan := next(upcoming, None)) is not None:
                    shard, units = plan
                    waiting.append((shard, pool.submit(source.prepare, units, skip_unreadable=skip_unreadable)))
                if not waiting:
                    return
                shard, future = waiting.popleft()
                with progress.stage("read"):
                    prepared = future.result()
                yield shard, prepared
        finally:
            for _, future in waiting:
                future.cancel()


def _putting(buffer: ShardBuffer, batch: PreparedBatch, copy: HostCopy | None) -> Callable[[], None]:
    def put() -> None:
        for position, reason in batch.unreadable.items():
            buffer.quarantine(position, reason)
        if copy is None:
            return
        encoded = copy.wait()
        buffer.clipped += copy.clipped
        global_ND = encoded.global_ND.numpy()
        stats = {name: values.tolist() for name, values in encoded.stats.items()}
        for row, (position, prepared) in enumerate(zip(batch.units, batch.prepared, strict=True)):
            beside = {"char_spans": prepared.char_spans_M2, "kept": prepared.kept_M, **prepared.regions}
            buffer.put(
                position,
                global_D=global_ND[row],
                values_MD=encoded.token_values[row].numpy(),
                stats={name: values[row] for name, values in stats.items()},
                beside={name: rows for name, rows in beside.items() if rows is not None},
            )

    return put


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


def padded_share(batches: list[list[int]], lengths_N: npt.NDArray[np.int32]) -> float:
    """Return which share of the token rows that the teacher computes is padding."""
    padded = sum(int(lengths_N[batch].max()) * len(batch) for batch in batches)
    used = sum(int(lengths_N[batch].sum()) for batch in batches)
    return 1.0 - used / padded if padded else 0.0
