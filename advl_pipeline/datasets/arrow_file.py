"""Record batches in Arrow IPC files, sealed by a digest, memory-mapped, built once per key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from advl_pipeline.datasets.index_files import SEAL_BYTES, Stamp, index_draft, seal_index, sealed_size, stamp_of

_FACTS = b"advl"


class ArrowFile:
    """The record batch of an index, mapped on first use in each process; pickling only sends its path.

    The content is checked against the digest once, unless the file is unchanged by its `stamp`.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        self.path = path
        self._stamp = stamp
        self._numbers: dict[str, npt.NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type[ArrowFile], tuple[Path, Stamp | None]]:
        return ArrowFile, (self.path, self._stamp)

    @cached_property
    def batch(self) -> Any:
        """The record batch, whose buffers are in the file.

        Raises:
            ValueError: the content does not match the seal. OSError: the file cannot be read.
        """
        stamp = stamp_of(self.path)
        size = sealed_size(self.path) if stamp != self._stamp else stamp[2] - SEAL_BYTES
        with pa.memory_map(str(self.path)) as file:
            content = file.read_buffer(size)
        if stamp_of(self.path) != stamp:
            raise ValueError(f"{self.path} changed while it was opened")
        self._stamp = stamp
        with pa.ipc.open_file(content) as reader:
            if reader.num_record_batches != 1:
                raise pa.ArrowInvalid("an index has one record batch")
            batch = reader.get_batch(0)
            batch.validate()
            return batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the complete batch, plain JSON types."""
        facts: Mapping[str, Any] = json.loads(self.batch.schema.metadata[_FACTS])
        return facts

    @cached_property
    def _columns(self) -> dict[str, Any]:
        # Arrow creates a column object on each access, which takes a tenth of the time budget of an example.
        return dict(zip(self.batch.schema.names, self.batch.columns, strict=True))

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers, or the codes of a dictionary column, without a copy."""
        if name not in self._numbers:
            column = self._columns[name]
            codes = column.indices if pa.types.is_dictionary(column.type) else column
            # Arrow's own conversion to NumPy imports pandas.
            self._numbers[name] = np.from_dlpack(codes)
        return self._numbers[name]

    def texts(self, name: str) -> Any:
        """Return an Arrow array: a column of texts, or the distinct texts of a dictionary column by code."""
        column = self._columns[name]
        return column.dictionary if pa.types.is_dictionary(column.type) else column

    def text(self, name: str, place: int) -> str:
        """Return one text of a column."""
        text: str = self.texts(name)[place].as_py()
        return text

    def lists(self, name: str, row: int) -> list[Any]:
        """Return the list of a row in a column of lists."""
        values: list[Any] = self._columns[name][row].as_py()
        return values

    def is_in(self, name: str, wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return for each row whether its text in a column is one of the wanted texts."""
        import pyarrow.compute as pc

        mask = pc.is_in(self._columns[name], value_set=pa.array(wanted, pa.large_string()))
        member: npt.NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False)
        return member


def record_batch(columns: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Any:
    """Return a record batch of Arrow arrays, or of values to convert to them, with facts as metadata."""
    batch = pa.record_batch(dict(columns))
    return batch.replace_schema_metadata({_FACTS: json.dumps(facts or {})})


def index_file(folder: Path, key: Mapping[str, Any]) -> Path:
    """Return the path of the index of `key` below `folder`, whether or not it exists."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return folder / f"{hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()}.arrow"


def open_index_file(folder: Path, key: Mapping[str, Any], build: Callable[[], Any]) -> ArrowFile:
    """Open the index of `key` below `folder`; build it first if it is missing or damaged.

    Args:
        folder: folder of the indices, created if missing.
        key: plain JSON types that determine the content of the index.
        build: returns the `record_batch`; called at most once.

    Raises:
        DatasetError: the index cannot be written.
    """
    path = index_file(folder, key)
    with suppress(OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        file = ArrowFile(path)
        _ = file.batch, file.facts
        return file
    # The file is missing, truncated, or not an index.
    batch = build()
    with index_draft(path) as draft:
        with pa.OSFile(str(draft), "wb") as written, pa.ipc.new_file(written, batch.schema) as writer:
            writer.write_batch(batch)
        seal_index(draft, path.name)
    return ArrowFile(path)
