"""Shuffled batches of 64 from a cache, warm and cold, compared with np.memmap.

Readers alternate within a round, since the load of the machine changes over minutes. "Cold": the kernel first drops
the pages of the files, and one epoch is timed by wall clock. "Warm": everything was read once before. The rate of a
single-threaded reader is then per second of processor time, which other jobs do not affect. Opening is timed
separately.

Shapes: N units, B units of a batch, M token rows, D feature width.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.folders import folder_bytes
from advl_pipeline.cache.arrays import ids_to_bytes
from advl_pipeline.cache.commit_records import ModalityRecord, PlanRecord
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.quantise import StoredDtype
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.stores import FolderStore
from advl_pipeline.cache.writer import CacheWriter, begin_cache, plan_cache
from advl_pipeline.training.batch_order import epoch_order
from benchmarks.rows import Row, ratio_row, thousands

BATCH_SIZE = 64
_STORED: tuple[StoredDtype, ...] = ("float16", "int8")
_MANY = 10_000
_BATCHES_ANNOUNCED = 16

Epoch = Callable[[int], Iterator[int]]
"""Yields the number of units of each batch, given the seed of the order."""

Reader = Callable[[], Epoch]
"""Opens the data to read."""


def measure_reading(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    rounds, seconds = (3, 0.3) if quick else (5, 2.0)
    of_texts, of_pictures = texts(6_000 if quick else 20_000), pictures(2_000 if quick else 8_000)
    for stored_dtype in _STORED:
        build_cache(folder / of_texts.name / stored_dtype, of_texts, stored_dtype=stored_dtype)
    build_cache(folder / of_pictures.name / "float16", of_pictures)
    for corpus in (of_texts, of_pictures):
        _build_flat(folder / corpus.name / "flat", corpus)
    # Only clean pages can be dropped.
    os.sync()
    rows = []
    forms: dict[str, Reader] = {name: read_cache(folder / of_texts.name / name) for name in _STORED}
    sizes = {name: folder_bytes(folder / of_texts.name / name / "text" / "tokens") / 1e6 for name in _STORED}
    for when, rates in _warm_and_cold(forms, folder / of_texts.name, rounds=rounds, seconds=seconds).items():
        more = f"; {sizes['int8']:.0f} of {sizes['float16']:.0f} MB"
        rows.append(_row(f"int8 reading, {when}, against float16", rates, "int8", "float16", 0.8, more))
    for corpus in (of_texts, of_pictures):
        place = folder / corpus.name
        readers = {"ours": read_cache(place / "float16"), "np.memmap": _memmap(place / "flat", corpus)}
        for when, rates in _warm_and_cold(readers, place, rounds=rounds, seconds=seconds).items():
            name = f"{corpus.name} {when}, against np.memmap doing the same"
            rows.append(_row(name, rates, "ours", "np.memmap", 0.95))
    return rows


def _row(name: str, rates: Mapping[str, list[float]], ours: str, other: str, goal: float, more: str = "") -> Row:
    words = ", ".join(f"{way} {thousands(rate)}" for way, rate in rates.items())
    return ratio_row(name, rates[ours], rates[other], goal=goal, detail=f"thousand units/s: {words}{more}")


def _warm_and_cold(
    readers: Mapping[str, Reader], folder: Path, *, rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Return the warm and the cold rates of each reader."""
    warm: dict[str, list[float]] = {name: [] for name in readers}
    cold: dict[str, list[float]] = {name: [] for name in readers}
    for path in _files(folder):
        path.read_bytes()
    for number in range(rounds):
        for name, reader in readers.items():
            warm[name].append(_rate(reader, number, seconds=seconds, epochs=_MANY, clock=time.process_time))
    for number in range(rounds):
        for name, reader in readers.items():
            # Mapped pages cannot be dropped, so every reading opens the files again.
            for path in _files(folder):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cold[name].append(_rate(reader, number, seconds=60.0, epochs=1, clock=time.perf_counter))
    return {"warm": warm, "cold": cold}


def _rate(reader: Reader, seed: int, *, seconds: float, epochs: int, clock: Callable[[], float]) -> float:
    epoch_of = reader()
    begin, units = clock(), 0
    for epoch in range(epochs):
        for count in epoch_of(seed + epoch):
            units += count
            if clock() - begin >= seconds:
                return units / (clock() - begin)
    return units / (clock() - begin)


def read_cache(path: Path) -> Reader:
    """Return a reader that works as training does: rows by unit id, with read-ahead hints for later batches."""

    def opened() -> Epoch:
        store = open_cache(path).stores()["text"]
        ids = list(store.ids)

        def read(seed: int) -> Iterator[int]:
            batches = _batches(ids, seed)
            store.begin_epoch()
            for number, batch in enumerate(batches):
                if number % _BATCHES_ANNOUNCED == 0:
                    announced = batches[number : number + 2 * _BATCHES_ANNOUNCED]
                    store.announce([unit_id for ids_B in announced for unit_id in ids_B])
                store.stored_tokens(batch)
                yield len(store.global_features(batch))

        return read

    return opened


def _batches(units: Sequence[Any], seed: int) -> list[list[Any]]:
    order = [units[place] for place in epoch_order(len(units), seed=seed, epoch=0).tolist()]
    return [order[first : first + BATCH_SIZE] for first in range(0, len(order), BATCH_SIZE)]


def _memmap(folder: Path, corpus: Corpus) -> Reader:
    """Return the usual reader: a memory-mapped flat `.npy` of rows, looked up by unit id, and global features."""
    ends_N = np.cumsum(corpus.lengths_N, dtype=np.int64).tolist()
    place_of = {corpus.unit_id(number): number for number in range(len(corpus))}

    def opened() -> Epoch:
        rows_RD = np.load(folder / "values.npy", mmap_mode="r")
        global_ND = np.load(folder / "global.npy", mmap_mode="r")

        def read(seed: int) -> Iterator[int]:
            for batch in _batches(list(place_of), seed):
                units = [place_of[unit_id] for unit_id in batch]
                np.concatenate([rows_RD[ends_N[unit] - corpus.lengths_N[unit] : ends_N[unit]] for unit in units])
                yield len(global_ND[units])

        return read

    return opened


def _build_flat(folder: Path, corpus: Corpus) -> None:
    folder.mkdir()
    np.save(folder / "values.npy", np.concatenate(list(corpus.units())))
    np.save(folder / "global.npy", np.stack([rows_MD[0] for rows_MD in corpus.units()]))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


DIM = 768


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Lengths of N units; a unit's features are drawn with its index as seed."""

    name: str
    lengths_N: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths_N)

    def units(self) -> Iterator[npt.NDArray[np.float16]]:
        """Yield the (M, D) features of every unit, in order."""
        pool = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float16)
        for number, length in enumerate(self.lengths_N.tolist()):
            first = (number * 97) % (len(pool) - length)
            yield pool[first : first + length]

    def unit_id(self, number: int) -> str:
        return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).hexdigest()


def texts(num_units: int) -> Corpus:
    """Return texts of 4 to 60 tokens, 22 on average, like VCR's candidates."""
    lengths = np.clip(np.random.default_rng(1).gamma(5.0, 4.4, num_units), 4, 60)
    return Corpus(name="texts", lengths_N=lengths.astype(np.int32))


def pictures(num_units: int) -> Corpus:
    """Return pictures of 50 regions."""
    return Corpus(name="pictures", lengths_N=np.full(num_units, 50, np.int32))


def build_cache(folder: Path, corpus: Corpus, *, stored_dtype: StoredDtype = "float16") -> None:
    """Write the corpus as a cache of texts."""
    store, identity = FolderStore(folder), {"corpus": corpus.name, "teacher": {"name": corpus.name}}
    shape = ModalityRecord(num_units=len(corpus), global_dim=DIM, token_dim=DIM, spans=False)
    record = PlanRecord(
        identity_sha256=digest(identity),
        stored_dtype=stored_dtype,
        shard_rows=65536,
        modalities={"text": shape},
        files={},
    )
    unit_ids_N16 = ids_to_bytes([corpus.unit_id(number) for number in range(len(corpus))])
    planned = plan_cache(record, {"text": unit_ids_N16}, {"text": corpus.lengths_N})
    begin_cache(store, planned, identity)
    writer = CacheWriter(store)
    units = corpus.units()
    for shard in range(writer.placement("text").num_shards):
        buffer = writer.new_buffer("text", shard)
        for unit in buffer.units:
            rows = next(units).astype(np.float32)
            buffer.put(unit, global_D=rows[0], values_MD=rows, stats={}, per_token={})
        writer.commit_shard("text", buffer)
    writer.finalise()
