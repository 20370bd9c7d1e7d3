"""More formats that people use: Lance, WebDataset, array_record, MDS.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.corpus import DIM, Corpus
from benchmarks.formats import Format, RandomAccess, Rows

_SHARD_BYTES = 64 << 20
_SHUFFLE_BUFFER = 1000


def _rows(content: bytes) -> Rows:
    return np.frombuffer(content, np.float16).reshape(-1, DIM)


class Lance(RandomAccess):
    """A Lance table with one binary value per unit, read by `take`."""

    name = "lance"
    needs = "lance"

    def build(self, folder: Path, corpus: Corpus) -> None:
        import lance
        import pyarrow as pa

        schema = pa.schema([("x", pa.large_binary())])

        def batches() -> Iterator[pa.RecordBatch]:
            held: list[bytes] = []
            for rows in corpus.units():
                held.append(rows.tobytes())
                if len(held) == _SHUFFLE_BUFFER:
                    yield pa.record_batch([pa.array(held, pa.large_binary())], schema)
                    held = []
            if held:
                yield pa.record_batch([pa.array(held, pa.large_binary())], schema)

        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(folder / "data.lance"))

    def open(self, folder: Path, corpus: Corpus) -> None:
        import lance

        self._data = lance.dataset(str(folder / "data.lance"))

    def read(self, units: Sequence[int]) -> list[Rows]:
        # `take` gives the rows in the order of the numbers that it is given.
        return [_rows(item) for item in self._data.take(list(map(int, units)), columns=["x"])["x"].to_pylist()]


class WebDataset(Format):
    """Tar shards read in a stream: shards are shuffled, and units within a buffer; there is no random access."""

    name = "WebDataset"
    needs = "webdataset"

    def build(self, folder: Path, corpus: Corpus) -> None:
        import webdataset

        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxsize=_SHARD_BYTES, verbose=0) as sink:
            for number, rows in enumerate(corpus.units()):
                sink.write({"__key__": f"{number:08d}", "bin": rows.tobytes()})

    def open(self, folder: Path, corpus: Corpus) -> None:
        self._urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def batches(self, order: npt.NDArray[np.int64], batch_size: int) -> Iterator[list[Rows]]:
        import webdataset

        stream = webdataset.WebDataset(self._urls, shardshuffle=len(self._urls), seed=int(order[0]))
        held: list[Rows] = []
        for sample in stream.shuffle(_SHUFFLE_BUFFER):
            held.append(_rows(sample["bin"]))
            if len(held) == batch_size:
                yield held
                held = []
        if held:
            yield held


class ArrayRecord(RandomAccess):
    """One array_record file with a record per unit, read by number."""

    name = "array_record"
    needs = "array_record"

    def build(self, folder: Path, corpus: Corpus) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "data.array_record"), "group_size:1,uncompressed")
        for rows in corpus.units():
            writer.write(rows.tobytes())
        writer.close()

    def open(self, folder: Path, corpus: Corpus) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self._reader = ArrayRecordReader(str(folder / "data.array_record"), "readahead_buffer_size:0")

    def close(self) -> None:
        self._reader.close()

    def read(self, units: Sequence[int]) -> list[Rows]:
        return [_rows(item) for item in self._reader.read(list(map(int, units)))]


class Mds(RandomAccess):
    """MosaicML's shards, read by number."""

    name = "MDS"
    needs = "streaming"

    def build(self, folder: Path, corpus: Corpus) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(folder), columns={"x": "bytes"}) as sink:
            for rows in corpus.units():
                sink.write({"x": rows.tobytes()})

    def open(self, folder: Path, corpus: Corpus) -> None:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        self._data = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)

    def read(self, units: Sequence[int]) -> list[Rows]:
        return [_rows(self._data[int(unit)]["x"]) for unit in units]


PEERS: tuple[type[Format], ...] = (Lance, WebDataset, ArrayRecord, Mds)
