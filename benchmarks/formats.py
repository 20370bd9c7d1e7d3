"""The same features in our cache and in the formats people use, each with a way to read an epoch in batches.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import importlib.util
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.compression import Compression
from advl_pipeline.cache.folder_store import FolderStore
from advl_pipeline.cache.index import ids_to_bytes
from advl_pipeline.cache.quantise import StoredDtype
from advl_pipeline.cache.reader import FeatureStore, open_cache
from advl_pipeline.cache.records import ModalityRecord
from advl_pipeline.cache.writer import CacheWriter, ModalityPlan, begin_cache
from benchmarks.corpus import DIM, Corpus

Rows = npt.NDArray[np.float16]


class Format(ABC):
    """One way to store features. `needs` is the library that must be installed."""

    name: ClassVar[str]
    needs: ClassVar[str] = ""

    @classmethod
    def is_available(cls) -> bool:
        if not cls.needs:
            return True
        found = importlib.util.find_spec(cls.needs)
        # A folder of datasets in the working directory is found too, as a package without a file.
        return found is not None and found.origin is not None

    @classmethod
    def folder_name(cls) -> str:
        return cls.name

    def close(self) -> None:
        """Let go of files; formats that only map files have nothing to do."""
        return

    @abstractmethod
    def build(self, folder: Path, corpus: Corpus) -> None:
        """Write the corpus."""

    @abstractmethod
    def open(self, folder: Path, corpus: Corpus) -> None:
        """Open what `build` wrote."""

    @abstractmethod
    def read(self, units: Sequence[int]) -> list[Rows]:
        """Return the (M, D) features of each unit, read by number in any order."""

    def batches(self, order: npt.NDArray[np.int64], batch_size: int) -> Iterator[list[Rows]]:
        """Yield the features of an epoch, in the given order."""
        for first in range(0, len(order), batch_size):
            yield self.read(order[first : first + batch_size].tolist())


class Memmap(Format):
    """One flat `.npy`, memory-mapped: the usual code, and the limit when everything is in memory."""

    name = "np.memmap"

    def build(self, folder: Path, corpus: Corpus) -> None:
        flat = np.lib.format.open_memmap(
            folder / "values.npy", mode="w+", dtype=np.float16, shape=(int(corpus.lengths_N.sum()), DIM)
        )
        row = 0
        for rows in corpus.units():
            flat[row : row + len(rows)] = rows
            row += len(rows)
        flat.flush()

    def open(self, folder: Path, corpus: Corpus) -> None:
        self._flat = np.load(folder / "values.npy", mmap_mode="r")
        self._ends = np.cumsum(corpus.lengths_N)
        self._lengths = corpus.lengths_N

    def read(self, units: Sequence[int]) -> list[Rows]:
        return [self._flat[self._ends[unit] - self._lengths[unit] : self._ends[unit]] for unit in units]


def build_cache(
    folder: Path, corpus: Corpus, *, stored_dtype: StoredDtype = "float16", compression: Compression = "none"
) -> None:
    """Write the corpus as a cache of texts."""
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
        compression=compression,
    )
    writer = CacheWriter(store)
    units = corpus.units()
    for shard in range(writer.placement("text").num_shards):
        buffer = writer.new_buffer("text", shard)
        for unit in buffer.units:
            rows = next(units).astype(np.float32)
            buffer.put(unit, global_D=rows[0], values_MD=rows, spans_M2=None, stats={})
        writer.commit_shard("text", buffer)
    writer.finalise()


class Ours(Format):
    """A cache of this project, read by id."""

    name = "ours, by id"

    def build(self, folder: Path, corpus: Corpus) -> None:
        build_cache(folder, corpus)

    def open(self, folder: Path, corpus: Corpus) -> None:
        store = open_cache(folder).text
        if store is None:
            raise ValueError(f"{folder} holds no texts")
        self.store: FeatureStore = store
        self._ids = [corpus.unit_id(number) for number in range(len(corpus))]

    def read(self, units: Sequence[int]) -> list[Rows]:
        values, lengths = self.store.token_features([self._ids[unit] for unit in units])
        return np.split(values, np.cumsum(lengths)[:-1])


class Hdf5(Format):
    """One contiguous data set in HDF5."""

    name = "h5py"
    needs = "h5py"

    def build(self, folder: Path, corpus: Corpus) -> None:
        import h5py

        with h5py.File(folder / "values.h5", "w") as file:
            values = file.create_dataset("values", (int(corpus.lengths_N.sum()), DIM), "f2")
            row = 0
            for rows in corpus.units():
                values[row : row + len(rows)] = rows
                row += len(rows)

    def open(self, folder: Path, corpus: Corpus) -> None:
        import h5py

        self._file = h5py.File(folder / "values.h5", "r")
        self._values = self._file["values"]
        self._ends = np.cumsum(corpus.lengths_N).tolist()
        self._lengths = corpus.lengths_N.tolist()

    def close(self) -> None:
        self._file.close()

    def read(self, units: Sequence[int]) -> list[Rows]:
        return [self._values[self._ends[unit] - self._lengths[unit] : self._ends[unit]] for unit in units]


class Lmdb(Format):
    """One LMDB value per unit."""

    name = "LMDB"
    needs = "lmdb"

    def build(self, folder: Path, corpus: Corpus) -> None:
        import lmdb

        environment = lmdb.open(str(folder), map_size=4 * corpus.num_bytes + (1 << 30))
        with environment.begin(write=True) as transaction:
            for number, rows in enumerate(corpus.units()):
                transaction.put(number.to_bytes(8, "big"), rows.tobytes())
        environment.close()

    def open(self, folder: Path, corpus: Corpus) -> None:
        import lmdb

        self._environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)

    def close(self) -> None:
        self._environment.close()

    def read(self, units: Sequence[int]) -> list[Rows]:
        with self._environment.begin(buffers=True) as transaction:
            return [
                np.frombuffer(transaction.get(int(unit).to_bytes(8, "big")) or b"", np.float16)
                .reshape(-1, DIM)
                .copy()
                for unit in units
            ]


class NumpyFiles(Format):
    """One `.npy` per unit."""

    name = "one .npy per unit"

    def build(self, folder: Path, corpus: Corpus) -> None:
        for number, rows in enumerate(corpus.units()):
            np.save(folder / f"{number}.npy", rows)

    def open(self, folder: Path, corpus: Corpus) -> None:
        self._folder = folder

    def read(self, units: Sequence[int]) -> list[Rows]:
        return [np.load(self._folder / f"{unit}.npy") for unit in units]


class ZarrPython(Format):
    """Our own cache read row by row with zarr-python."""

    name = "zarr-python"

    @classmethod
    def folder_name(cls) -> str:
        return Ours.name

    def build(self, folder: Path, corpus: Corpus) -> None:
        Ours().build(folder, corpus)

    def open(self, folder: Path, corpus: Corpus) -> None:
        import zarr

        group = zarr.open_group(folder, mode="r")
        self._values: Any = group["text/tokens/values"]
        self._starts = np.asarray(group["text/tokens/starts"])
        self._lengths = corpus.lengths_N

    def read(self, units: Sequence[int]) -> list[Rows]:
        return [self._values[self._starts[unit] : self._starts[unit] + self._lengths[unit]] for unit in units]


class HfDatasets(Format):
    """HF datasets with flat Arrow lists."""

    name = "HF datasets"
    needs = "datasets"

    def build(self, folder: Path, corpus: Corpus) -> None:
        import datasets
        import pyarrow as pa

        writer = None
        rows: list[Any] = []
        path = folder / "data.arrow"

        def table() -> pa.Table:
            return pa.table({"x": pa.array([item.reshape(-1) for item in rows], pa.large_list(pa.float16()))})

        with pa.OSFile(str(path), "wb") as sink:
            for item in corpus.units():
                rows.append(item)
                if len(rows) == 1000:
                    writer = writer or pa.ipc.new_stream(sink, table().schema)
                    writer.write_table(table())
                    rows = []
            if rows:
                writer = writer or pa.ipc.new_stream(sink, table().schema)
                writer.write_table(table())
            if writer is not None:
                writer.close()
        datasets.Dataset.from_file(str(path))

    def open(self, folder: Path, corpus: Corpus) -> None:
        import datasets

        self._data = datasets.Dataset.from_file(str(folder / "data.arrow")).with_format("arrow")

    def read(self, units: Sequence[int]) -> list[Rows]:
        column = self._data[list(map(int, units))]["x"].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
        return [flat[a:b].reshape(-1, DIM) for a, b in itertools.pairwise(offsets)]


FORMATS: tuple[type[Format], ...] = (Memmap, Ours, HfDatasets, Lmdb, Hdf5, NumpyFiles, ZarrPython)
