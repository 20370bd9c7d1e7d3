"""Size without cost: how much memory streaming takes at 1x and 10x the data."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

from benchmarks.corpus import build_cache, texts
from benchmarks.reading import read_cache
from benchmarks.rows import Row


def measure_scale(folder: Path, quick: bool) -> list[Row]:
    """Measure the row of this section."""
    small, large = streaming_memory(folder, num_units=500 if quick else 4_000)
    detail = f"{small / 2**20:.0f} and {large / 2**20:.0f} MiB"
    name = "memory of streaming 10 x the data, ratio"
    return [Row(name=name, value=large / small, goal=1.1, at_least=False, detail=detail)]


def streaming_memory(folder: Path, *, num_units: int) -> tuple[int, int]:
    """Return anonymous memory in bytes that a process holds at most while it streams 1x the units ten times, and 10x
    the units once: as many batches, so that what waits between reader and loop has filled up in both.
    """
    found = []
    for factor in (1, 10):
        target = folder / f"{factor}x"
        corpus = texts(num_units * factor)
        build_cache(target, corpus)
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        worker = context.Process(target=_stream_and_report, args=(target, 10 // factor, queue))
        worker.start()
        found.append(int(queue.get(timeout=600)))
        worker.join()
        shutil.rmtree(target)
    return found[0], found[1]


def _stream_and_report(target: Path, num_epochs: int, queue: multiprocessing.Queue[int]) -> None:
    read, peak = read_cache(target)(), 0
    for epoch in range(num_epochs):
        for _ in read(epoch):
            peak = max(peak, anonymous_bytes())
    queue.put(peak)


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
