"""Shuffled padded batches from every format, warm and cold, interleaved so that all meet the same machine.

Speeds are compared within a round, where ours and the fastest others follow one another: what else the machine does
changes over minutes.

Shapes: B units of a batch, M tokens of the longest of them, D feature width.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.order import epoch_order
from benchmarks.corpus import DIM, Corpus
from benchmarks.formats import FORMATS, Format, Ours

BATCH_SIZE = 64
STREAM = "ours, streamed"
INLINE = "ours, in line"
_MANY = 10_000


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Units per second of one format, by round."""

    name: str
    warm_rounds: tuple[float, ...]
    cold_rounds: tuple[float, ...]

    @property
    def warm(self) -> float:
        """The median."""
        return statistics.median(self.warm_rounds)

    @property
    def cold(self) -> float:
        """The median."""
        return statistics.median(self.cold_rounds)


def median_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over rounds of one format's speed as a multiple of another's."""
    return statistics.median(own / other for own, other in zip(ours, others, strict=True))


def measure_reading(
    corpus: Corpus, folder: Path, *, rounds: int, seconds: float, say: Callable[[str], None]
) -> list[Rate]:
    """Build every available format and read it.

    Args:
        corpus: the data.
        folder: where to build.
        rounds: how often each format is read, warm and cold.
        seconds: how long each reading lasts at most.
        say: told what is skipped.
    """
    kinds: dict[str, type[Format]] = {}
    for kind in FORMATS:
        if not kind.is_available():
            say(f"{kind.name} ({kind.needs} is not installed)")
            continue
        target = folder / corpus.name / kind.folder_name()
        if not target.exists():
            target.mkdir(parents=True)
            kind().build(target, corpus)
        kinds[kind.name] = kind
    # Only clean pages can be dropped; flushing file by file at every dropping would take minutes.
    os.sync()
    kinds = {STREAM: Ours, INLINE: Ours, **kinds}
    warm: dict[str, list[float]] = {name: [] for name in kinds}
    cold: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds):
        for name, kind in kinds.items():
            target = folder / corpus.name / kind.folder_name()
            # What is mapped cannot be dropped, so every reading opens anew.
            drop_pages(target)
            cold[name].append(_rate(name, kind, target, corpus, number, seconds=seconds, epochs=1))
            load_pages(target)
            warm[name].append(_rate(name, kind, target, corpus, number, seconds=seconds, epochs=_MANY))
            drop_pages(target)
    return [Rate(name=name, warm_rounds=tuple(warm[name]), cold_rounds=tuple(cold[name])) for name in kinds]


def sequential_cold_share(corpus: Corpus, folder: Path, *, rounds: int) -> float:
    """Return our sequential cold reading speed as a share of what `dd` gets from the same files."""
    target = folder / corpus.name / Ours.name
    shares = []
    for _ in range(rounds):
        drop_pages(target)
        ours = Ours()
        ours.open(target, corpus)
        begin = time.perf_counter()
        num_bytes = sum(batch.num_bytes for batch in ours.store.batches(BATCH_SIZE, shuffle=False))
        ours_rate = num_bytes / (time.perf_counter() - begin)
        del ours  # What is mapped cannot be dropped.
        drop_pages(target)
        files = [path for path in sorted(target.rglob("c/*/0")) if path.stat().st_size > 1 << 20]
        begin = time.perf_counter()
        for path in files:
            subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M"], check=True, capture_output=True)
        dd_rate = sum(path.stat().st_size for path in files) / (time.perf_counter() - begin)
        shares.append(ours_rate / dd_rate)
    return statistics.median(shares)


def pad(rows: Sequence[npt.NDArray[np.float16]]) -> torch.Tensor:
    """Pad units into one (B, M, D) tensor: the work that every format's batch goes through."""
    padded_BMD = np.zeros((len(rows), max(map(len, rows)), DIM), np.float16)
    for place, item in zip(padded_BMD, rows, strict=True):
        place[: len(item)] = item
    return torch.from_numpy(padded_BMD)


def drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the pages of all files below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def load_pages(folder: Path) -> None:
    """Read all files below a folder once."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as handle:
                while handle.read(1 << 24):
                    pass


def _rate(
    name: str, kind: type[Format], target: Path, corpus: Corpus, seed: int, *, seconds: float, epochs: int
) -> float:
    item = kind()
    item.open(target, corpus)
    begin = time.perf_counter()
    units = 0
    for epoch in range(epochs):
        for count in _epoch(name, item, corpus, seed + epoch):
            units += count
            if time.perf_counter() - begin >= seconds:
                break
        if time.perf_counter() - begin >= seconds:
            break
    elapsed = time.perf_counter() - begin
    item.close()
    return units / elapsed


def _epoch(name: str, item: Format, corpus: Corpus, seed: int) -> Iterator[int]:
    if name in (STREAM, INLINE) and isinstance(item, Ours):
        bytes_in_flight = 64 << 20 if name == STREAM else 0
        for batch in item.store.batches(BATCH_SIZE, seed=seed, bytes_in_flight=bytes_in_flight):
            yield len(batch.ids)
        return
    order = epoch_order(len(corpus), seed=seed, epoch=0)
    for rows in item.batches(order, BATCH_SIZE):
        pad(rows)
        yield len(rows)
