"""Opening VCR's annotations at their official size, and reading random examples.

Each opening runs in a separate process. The first builds the index; later ones, and thus every epoch, parse nothing.
Times are processor time, which other jobs on the machine do not affect.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from advl_pipeline.base.compute import peak_memory_bytes
from advl_pipeline.datasets.registry import open_dataset
from benchmarks.made_up import write_mirror
from benchmarks.rows import Row

_DRAWN = 5_000
_AMONG = 600
"""Number of questions from which examples are drawn; their pictures are loaded beforehand."""


def measure_index(folder: Path, quick: bool) -> list[Row]:
    """Measure the rows of this section."""
    share = 0.02 if quick else 1.0
    write_mirror("vcr", folder, share=share, held_out=1)
    context = multiprocessing.get_context("spawn")
    measurements = []
    for _ in range(2):
        with context.Pool(1) as pool:
            measurements.append(pool.apply(_open, (folder,)))
    (seconds, _, peak, count), (again, of_example, _, _) = measurements
    size = sum(file.stat().st_size for file in (folder / ".index").rglob("*") if file.is_file())
    detail = f"{count:,} examples, an index of {size / 2**20:,.0f} MiB; opened again in {1e3 * again:.0f} ms"
    return [
        Row("index: first opening of VCR, s", seconds, 15.0, at_least=False, detail=detail),
        Row("index: memory of it, GiB", peak / 2**30, 1.0, at_least=False, detail="resident"),
        Row("index: a random example, us", 1e6 * of_example, 100.0, at_least=False, detail=f"of {_AMONG}"),
    ]


def _open(root: Path) -> tuple[float, float, int, int]:
    """Return processor seconds of opening and of a random example, peak memory in bytes, and number of examples."""
    began = time.process_time()
    dataset = open_dataset("vcr", split="train", data_root=root)
    opened = time.process_time() - began
    known = range(min(_AMONG, len(dataset)))
    for position in known:
        _ = dataset[position]
    drawn = random.Random(0).choices(known, k=_DRAWN)
    began = time.process_time()
    for position in drawn:
        _ = dataset[position]
    return opened, (time.process_time() - began) / _DRAWN, peak_memory_bytes(), len(dataset)
