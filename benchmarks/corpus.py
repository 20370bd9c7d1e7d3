"""The data that is read: ragged fp16 features of made-up units, drawn by length from a seed, and a cache of them.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.commit_records import ModalityRecord
from advl_pipeline.cache.folder_store import FolderStore
from advl_pipeline.cache.quantise import StoredDtype
from advl_pipeline.cache.unit_index import ids_to_bytes
from advl_pipeline.cache.writer import CacheWriter, ModalityPlan, begin_cache

DIM = 768


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Lengths of N units; the features of a unit are drawn from its number."""

    name: str
    lengths_N: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths_N)

    @property
    def num_bytes(self) -> int:
        return int(self.lengths_N.sum()) * DIM * 2

    def units(self) -> Iterator[npt.NDArray[np.float16]]:
        """Yield the (M, D) features of every unit, in order."""
        pool = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float16)
        for number, length in enumerate(self.lengths_N.tolist()):
            first = (number * 97) % (len(pool) - length)
            yield pool[first : first + length]

    def unit_id(self, number: int) -> str:
        return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).hexdigest()


def texts(num_units: int) -> Corpus:
    """Texts of 4 to 60 tokens, 22 on average, as VCR's candidates are."""
    lengths = np.clip(np.random.default_rng(1).gamma(5.0, 4.4, num_units), 4, 60)
    return Corpus(name="texts", lengths_N=lengths.astype(np.int32))


def pictures(num_units: int) -> Corpus:
    """Pictures of 50 regions."""
    return Corpus(name="pictures", lengths_N=np.full(num_units, 50, np.int32))


def build_cache(folder: Path, corpus: Corpus, *, stored_dtype: StoredDtype = "float16") -> None:
    """Write the corpus as a cache of texts, if it is not there."""
    if folder.exists():
        return
    plan = ModalityPlan(
        unit_ids_N16=ids_to_bytes([corpus.unit_id(number) for number in range(len(corpus))]),
        lengths_N=corpus.lengths_N,
        shape=ModalityRecord(num_units=len(corpus), global_dim=DIM, token_dim=DIM, spans=False),
    )
    store = FolderStore(folder)
    begin_cache(
        store,
        identity={"corpus": corpus.name},
        provenance={},
        stored_dtype=stored_dtype,
        shard_rows=65536,
        modalities={"text": plan},
    )
    writer = CacheWriter(store)
    units = corpus.units()
    for shard in range(writer.placement("text").num_shards):
        buffer = writer.new_buffer("text", shard)
        for unit in buffer.units:
            rows = next(units).astype(np.float32)
            buffer.put(unit, global_D=rows[0], values_MD=rows, stats={}, beside={})
        writer.commit_shard("text", buffer)
    writer.finalise()
