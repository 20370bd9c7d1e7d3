"""Shuffled padded batches of 64 from a cache, warm and cold, beside np.memmap doing the same and `dd`.

Readers follow one another within a round: what else the machine does changes over minutes. "Cold" means that the
kernel was told to drop the pages of the files before, and one epoch is read, by the clock. "Warm" means that all were
read once; where a reader has one thread, its rate is per second of processor time, which other jobs leave alone.
Opening is apart.

Shapes: N units, B units of a batch, M tokens of the longest of them, D feature width.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advl_pipeline.cache.quantise import dequantise
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.training.batch_order import epoch_order
from benchmarks.corpus import DIM, Corpus, build_cache, pictures, texts
from benchmarks.rows import Row, ratio_row, thousands

BATCH_SIZE = 64
_STORED: dict[str, dict[str, Any]] = {
    "float16": {},
    "int8": {"stored_dtype": "int8"},
}
_MANY = 10_000
_NARROW_KIB = 128
"""The read-ahead of a kernel as it comes; this machine's may be wider."""

_BATCHES_ANNOUNCED = 16

Clock = Callable[[], float]
Epoch = Callable[[int], Iterator[int]]
"""Yields the number of units of each batch, given the seed of the order."""

Reader = Callable[[], Epoch]
"""Opens what is to be read."""


def measure_reading(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    rounds, seconds = (3, 0.3) if quick else (5, 2.0)
    of_texts, of_pictures = texts(6_000 if quick else 20_000), pictures(2_000 if quick else 8_000)
    for name, settings in _STORED.items():
        build_cache(folder / of_texts.name / name, of_texts, **settings)
    build_cache(folder / of_pictures.name / "float16", of_pictures)
    for corpus in (of_texts, of_pictures):
        _build_flat(folder / corpus.name / "flat", corpus)
    # Only clean pages can be dropped.
    os.sync()
    return [
        *_stored_forms(folder / of_texts.name, rounds=rounds, seconds=seconds),
        *_against_memmap(folder / of_texts.name, of_texts, rounds=rounds, seconds=seconds),
        *_against_memmap(folder / of_pictures.name, of_pictures, rounds=rounds, seconds=seconds),
    ]


def _stored_forms(folder: Path, *, rounds: int, seconds: float) -> list[Row]:
    """int8 against float16. An int8 batch is codes and scales; `dequantised` turns it into float16, too."""
    in_line: dict[str, Reader] = {name: read_cache(folder / name) for name in ("float16", "int8")}
    in_line["dequantised"] = read_cache(folder / "int8", dequantised=True)
    warm = _warm(in_line, folder, rounds=rounds, seconds=seconds, clock=time.process_time)
    cold = _cold({name: read_cache(folder / name) for name in _STORED}, folder, rounds=rounds)
    sizes = {name: _num_bytes(folder / name) / 1e6 for name in _STORED}
    return [
        ratio_row(
            "int8 reading, warm, against float16",
            warm["int8"],
            warm["float16"],
            goal=0.8,
            detail=f"{thousands(warm['int8'])} of {thousands(warm['float16'])} thousand texts per processor second "
            f"as codes and scales, {thousands(warm['dequantised'])} dequantised on the CPU; {sizes['int8']:.0f} of "
            f"{sizes['float16']:.0f} MB",
        ),
        ratio_row(
            "int8 reading, cold, against float16",
            cold["int8"],
            cold["float16"],
            goal=0.8,
            detail=f"{thousands(cold['int8'])} of {thousands(cold['float16'])} thousand texts/s",
        ),
    ]


def _against_memmap(folder: Path, corpus: Corpus, *, rounds: int, seconds: float) -> list[Row]:
    """Our reading against np.memmap; cold also `dd` of our files."""
    ours = {"ours": read_cache(folder / "float16")}
    by_hand = {"np.memmap": _memmap(folder / "flat", corpus)}
    warm = _warm(ours | by_hand, folder, rounds=rounds, seconds=seconds, clock=time.process_time)
    cold = _cold(ours | by_hand | {"dd": _dd(folder / "float16", len(corpus))}, folder, rounds=rounds)
    rows = [
        _row(f"{corpus.name} warm, against np.memmap doing the same", warm, "np.memmap", 0.95),
        _row(f"{corpus.name} cold, against dd", cold, "dd", 0.95),
    ]
    name = f"{corpus.name} cold, against np.memmap with {_NARROW_KIB} kB of read-ahead"
    try:
        with _read_ahead(folder, _NARROW_KIB):
            narrow = _cold(ours | by_hand, folder, rounds=rounds)
        rows.append(_row(name, narrow, "np.memmap", 1.4))
    except OSError as error:
        rows.append(Row(name=name, value=None, goal=1.4, detail=f"the read-ahead of the disk cannot be set: {error}"))
    return rows


def _row(name: str, rates: Mapping[str, list[float]], other: str, goal: float) -> Row:
    said = ", ".join(f"{way} {thousands(found)}" for way, found in rates.items())
    return ratio_row(name, rates["ours"], rates[other], goal=goal, detail=f"thousand units/s: {said}")


def _warm(
    readers: Mapping[str, Reader], folder: Path, *, rounds: int, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    _load_pages(folder)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        for name, reader in readers.items():
            rates[name].append(_rate(reader, number, seconds=seconds, epochs=_MANY, clock=clock))
    return rates


def _cold(readers: Mapping[str, Reader], folder: Path, *, rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        for name, reader in readers.items():
            # What is mapped cannot be dropped, so every reading opens anew.
            _drop_pages(folder)
            rates[name].append(_rate(reader, number, seconds=60.0, epochs=1))
    return rates


def _rate(reader: Reader, seed: int, *, seconds: float, epochs: int, clock: Clock = time.perf_counter) -> float:
    epoch_of = reader()
    begin, units = clock(), 0
    for epoch in range(epochs):
        for count in epoch_of(seed + epoch):
            units += count
            if clock() - begin >= seconds:
                return units / (clock() - begin)
    return units / (clock() - begin)


def read_cache(path: Path, *, dequantised: bool = False) -> Reader:
    """Padded batches as training reads them: those further on are announced to the kernel."""

    def opened() -> Epoch:
        store = open_cache(path).stores()["text"]

        def read(seed: int) -> Iterator[int]:
            order = epoch_order(len(store), seed=seed, epoch=0)
            batches = [order[first : first + BATCH_SIZE] for first in range(0, len(order), BATCH_SIZE)]
            store.begin_epoch()
            for number, position_B in enumerate(batches):
                if number % _BATCHES_ANNOUNCED == 0:
                    store.announce_positions(np.concatenate(batches[number : number + 2 * _BATCHES_ANNOUNCED]))
                stored_BMD, length_B = store.padded_tokens(position_B)
                scale_BM = store.padded_scales(position_B)
                if dequantised:
                    assert scale_BM is not None
                    dequantise(torch.from_numpy(stored_BMD), torch.from_numpy(scale_BM))
                batch = (
                    store.global_rows(position_B),
                    stored_BMD,
                    np.arange(stored_BMD.shape[1]) < length_B[:, None],
                )
                yield len(batch[0])

        return read

    return opened


def _memmap(folder: Path, corpus: Corpus) -> Reader:
    """The usual code: a flat `.npy` of rows, mapped; global features, padded rows and their mask, batch by batch."""
    ends_N = np.cumsum(corpus.lengths_N, dtype=np.int64)

    def opened() -> Epoch:
        rows_RD = np.load(folder / "values.npy", mmap_mode="r")
        global_ND = np.load(folder / "global.npy", mmap_mode="r")

        def read(seed: int) -> Iterator[int]:
            order = epoch_order(len(corpus), seed=seed, epoch=0)
            for first in range(0, len(order), BATCH_SIZE):
                units = order[first : first + BATCH_SIZE]
                length_B = corpus.lengths_N[units]
                padded_BMD = np.zeros((len(units), int(length_B.max()), DIM), np.float16)
                for target_MD, end, length in zip(padded_BMD, ends_N[units].tolist(), length_B.tolist(), strict=True):
                    target_MD[:length] = rows_RD[end - length : end]
                batch = (global_ND[units], padded_BMD, np.arange(padded_BMD.shape[1]) < length_B[:, None])
                yield len(batch[0])

        return read

    return opened


def _dd(cache: Path, num_units: int) -> Reader:
    """All of a cache's large files, one after another, as if they were one batch."""

    def read(seed: int) -> Iterator[int]:
        del seed
        for path in sorted(cache.rglob("c/*/0")):
            if path.stat().st_size > 1 << 20:
                subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=8M"], check=True, capture_output=True)
        yield num_units

    return lambda: read


def _build_flat(folder: Path, corpus: Corpus) -> None:
    if folder.exists():
        return
    folder.mkdir()
    num_rows = int(corpus.lengths_N.sum())
    values = np.lib.format.open_memmap(folder / "values.npy", mode="w+", dtype=np.float16, shape=(num_rows, DIM))
    global_ND = np.empty((len(corpus), DIM), np.float16)
    row = 0
    for number, rows in enumerate(corpus.units()):
        values[row : row + len(rows)] = rows
        global_ND[number] = rows[0]
        row += len(rows)
    values.flush()
    np.save(folder / "global.npy", global_ND)


@contextmanager
def _read_ahead(folder: Path, kib: int) -> Iterator[None]:
    """Set the read-ahead of the disk under a folder; raises `OSError` where that is not allowed."""
    device = folder.stat().st_dev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    queue = next((path / "queue" for path in (place, place.parent) if (path / "queue").exists()), place)
    setting = queue / "read_ahead_kb"
    before = setting.read_text()
    setting.write_text(str(kib))
    try:
        yield
    finally:
        setting.write_text(before)


def _num_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "text/tokens").rglob("*") if path.is_file())


def _drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the pages of all files below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _load_pages(folder: Path) -> None:
    """Read all files below a folder once."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as handle:
                while handle.read(1 << 24):
                    pass
