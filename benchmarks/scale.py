"""Size without cost: how long opening takes with millions of units, how much memory streaming takes at 1x and 10x."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np

from advl_pipeline.cache.folder_store import FolderStore
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.records import ModalityRecord
from advl_pipeline.cache.shard_buffer import staged_content
from advl_pipeline.cache.writer import CacheWriter, ModalityPlan, begin_cache
from benchmarks.corpus import texts
from benchmarks.formats import Ours

_WIDTH = 8


def opening_seconds(num_units: int, folder: Path) -> float:
    """Return the median time to open a cache of many units with one global feature each."""
    if not folder.exists():
        _build_wide(num_units, folder)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        cache = open_cache(folder)
        seconds.append(time.perf_counter() - begin)
        del cache
    return sorted(seconds)[len(seconds) // 2]


def streaming_memory(folder: Path, *, num_units: int) -> tuple[int, int]:
    """Return anonymous memory in bytes that a process holds at most while it streams 1x the units ten times, and 10x
    the units once: as many batches, so that what waits between reader and loop has filled up in both.
    """
    found = []
    for factor in (1, 10):
        target = folder / f"{factor}x"
        corpus = texts(num_units * factor)
        if not target.exists():
            target.mkdir(parents=True)
            Ours().build(target, corpus)
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        worker = context.Process(target=_stream_and_report, args=(target, 10 // factor, queue))
        worker.start()
        found.append(int(queue.get(timeout=600)))
        worker.join()
        shutil.rmtree(target)
    return found[0], found[1]


def _stream_and_report(target: Path, num_epochs: int, queue: multiprocessing.Queue[int]) -> None:
    store = open_cache(target).text
    if store is None:
        raise ValueError(f"{target} holds no texts")
    peak = 0
    for epoch in range(num_epochs):
        for _ in store.batches(64, epoch=epoch):
            peak = max(peak, anonymous_bytes())
    queue.put(peak)


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _build_wide(num_units: int, folder: Path) -> None:
    generator = np.random.default_rng(0)
    plan = ModalityPlan(
        unit_ids_N16=generator.integers(0, 256, (num_units, 16), dtype=np.uint8),
        lengths_N=np.zeros(num_units, np.int32),
        shape=ModalityRecord(num_units=num_units, global_dim=_WIDTH, token_dim=None, spans=False),
    )
    store = FolderStore(folder)
    begin_cache(
        store,
        identity={"units": num_units},
        provenance={},
        stored_dtype="float16",
        shard_rows=1 << 20,
        modalities={"text": plan},
    )
    writer = CacheWriter(store)
    for shard in range(writer.placement("text").num_shards):
        rows = generator.standard_normal((len(writer.placement("text").units_of(shard)), _WIDTH)).astype(np.float16)
        writer.commit_rows("text", shard, tables=staged_content(rows, None, None, {}), token_rows={})
    writer.finalise()
    shutil.rmtree(folder / ".work")
