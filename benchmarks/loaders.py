"""Padded batches of 64 texts for a training loop of one's own, compared with LMDB, h5py and `np.memmap`.

Every reader looks texts up by id in a shuffled order and gives equal batches: features of the texts, padded tokens
and their mask. All but the ready batches are datasets in torch's `DataLoader` without workers. The rates are per
second of processor time, from alternating rounds with everything in memory.

Shapes: B units of a batch, M token rows, D feature width.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from advl_pipeline.base.prefetch import keep_freed_memory
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.torch_dataset import CachedFeatures, FeatureCollator
from benchmarks.reading import BATCH_SIZE, Corpus, build_cache, texts
from benchmarks.rows import Row, ratio_row, thousands

Batches = Iterable[dict[str, Any]]
Read = Callable[[int], npt.NDArray[np.float16]]
"""Returns the features of a text, its first row, and its tokens, the others: (1 + M, D)."""


def measure_loaders(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    corpus, rounds = texts(1_500 if quick else 6_000), 3 if quick else 7
    keep_freed_memory()
    build_cache(folder / "cache", corpus)
    readers = open_readers(folder, corpus)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, reader in readers.items():
            began, num_texts = time.process_time(), 0
            for batch in reader(number):
                num_texts += len(batch["unit_id"])
            if number:  # The first round warms up.
                rates[name].append(num_texts / (time.process_time() - began))
    detail = "thousand texts/s: " + ", ".join(f"{name} {thousands(rate)}" for name, rate in rates.items())
    goals = {"LMDB": 1.5, "h5py": 1.5, "np.memmap": 1.2}
    rows = [
        ratio_row(
            f"loaders: DataLoader of ours, against {name}", rates["ours"], rates[name], goal=goal, detail=detail
        )
        for name, goal in goals.items()
    ]
    name = "loaders: ready batches, against the rows of `finetune`, padded"
    return [*rows, ratio_row(name, rates["ready batches"], rates["finetune"], goal=1.0, detail=detail)]


def open_readers(folder: Path, corpus: Corpus) -> dict[str, Callable[[int], Batches]]:
    """Write the corpus in each form next to its `cache`; return, by name, the batches of an epoch by its seed."""
    data = CachedFeatures([folder / "cache"], "text")
    datasets: dict[str, Dataset[dict[str, Any]]] = {"ours": data} | {
        name: Stored(corpus, write(folder, corpus))
        for name, write in {"LMDB": _lmdb, "h5py": _h5py, "np.memmap": _memmap}.items()
    }

    def loaded(name: str) -> Callable[[int], Batches]:
        collate = FeatureCollator() if name == "ours" else _padded

        def epoch(seed: int) -> Batches:
            order = torch.Generator().manual_seed(seed)
            return DataLoader(datasets[name], BATCH_SIZE, shuffle=True, generator=order, collate_fn=collate)

        return epoch

    ready = {
        "ready batches": lambda seed: data.batches(BATCH_SIZE, seed=seed),
        "finetune": _of_finetune(folder / "cache"),
    }
    return {**{name: loaded(name) for name in datasets}, **ready}


@dataclass(frozen=True)
class Stored(Dataset[dict[str, Any]]):
    """Texts by position, as usual: an id, its features and its tokens."""

    corpus: Corpus
    read: Read

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = torch.from_numpy(self.read(index))
        return {"unit_id": self.corpus.unit_id(index), "global": rows[0], "tokens": rows[1:]}


def _padded(items: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = [item["tokens"] for item in items]
    lengths_B1 = torch.tensor([[len(tokens_MD)] for tokens_MD in tokens])
    padded_BMD = pad_sequence(tokens, batch_first=True)
    return {
        "unit_id": [item["unit_id"] for item in items],
        "global": torch.stack([item["global"] for item in items]),
        "tokens": padded_BMD,
        "mask": torch.arange(padded_BMD.shape[1]) < lengths_B1,
    }


def _with_global(corpus: Corpus) -> Iterator[npt.NDArray[np.float16]]:
    return (np.concatenate([rows_MD[:1], rows_MD]) for rows_MD in corpus.units())


def _lmdb(folder: Path, corpus: Corpus) -> Read:
    width = next(corpus.units()).shape[1]
    with lmdb.open(str(folder / "lmdb"), map_size=1 << 32) as written, written.begin(write=True) as transaction:
        for number, rows in enumerate(_with_global(corpus)):
            transaction.put(corpus.unit_id(number).encode(), rows.tobytes())
    # Batches are copies, and nothing writes to the map.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    reading = lmdb.open(str(folder / "lmdb"), readonly=True, lock=False).begin(buffers=True)

    def read(index: int) -> npt.NDArray[np.float16]:
        value = reading.get(corpus.unit_id(index).encode())
        assert value is not None
        return np.frombuffer(value, np.float16).reshape(-1, width)

    return read


def _h5py(folder: Path, corpus: Corpus) -> Read:
    with h5py.File(folder / "rows.h5", "w") as written:
        written["rows"] = np.concatenate(list(_with_global(corpus)))
    return _slices(corpus, h5py.File(folder / "rows.h5")["rows"])


def _memmap(folder: Path, corpus: Corpus) -> Read:
    np.save(folder / "rows.npy", np.concatenate(list(_with_global(corpus))))
    rows = np.load(folder / "rows.npy", mmap_mode="c")
    return _slices(corpus, rows)


def _slices(corpus: Corpus, rows: Any) -> Read:
    ends = np.cumsum(corpus.lengths_N + 1).tolist()
    place_of = {corpus.unit_id(number): number for number in range(len(corpus))}

    def read(index: int) -> npt.NDArray[np.float16]:
        place = place_of[corpus.unit_id(index)]
        part: npt.NDArray[np.float16] = rows[ends[place] - corpus.lengths_N[place] - 1 : ends[place]]
        return part

    return read


def _of_finetune(path: Path) -> Callable[[int], Batches]:
    """Return what a run reads, rows without padding, padded as by `pad_sequence`."""
    store = open_cache(path).stores()["text"]
    ids = list(store.ids)

    def epoch(seed: int) -> Batches:
        order = np.random.default_rng(seed).permutation(len(ids)).tolist()
        for first in range(0, len(order), BATCH_SIZE):
            chosen = [ids[place] for place in order[first : first + BATCH_SIZE]]
            values_MD, _, lengths_B = store.stored_tokens(chosen)
            tokens = torch.split(torch.from_numpy(values_MD), lengths_B.tolist())
            padded_BMD = pad_sequence([*tokens], batch_first=True)
            mask_BM = torch.arange(padded_BMD.shape[1]) < torch.from_numpy(lengths_B)[:, None]
            features = torch.from_numpy(store.global_features(chosen))
            yield {"unit_id": chosen, "global": features, "tokens": padded_BMD, "mask": mask_BM}

    return epoch
