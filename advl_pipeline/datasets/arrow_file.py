"""Record batches in files of Arrow's IPC format, sealed by a digest, mapped into memory, built once for each key."""

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
    """The record batch of an index, mapped when first used in any process: it is sent as its path.

    Its digest is compared with the content once, unless the file is as it was then by its `stamp`.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        self.path = path
        self._stamp = stamp
        self._numbers: dict[str, npt.NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type[ArrowFile], tuple[Path, Stamp | None]]:
        return ArrowFile, (self.path, self._stamp)

    @cached_property
    def batch(self) -> Any:
        """The record batch; its buffers are in the file.

        Raises:
            ValueError: the file is not what was written. OSError: it cannot be read.
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
        """What was recorded of the whole, plain JSON types."""
        facts: Mapping[str, Any] = json.loads(self.batch.schema.metadata[_FACTS])
        return facts

    @cached_property
    def _columns(self) -> dict[str, Any]:
        # Arrow makes a column again each time it is asked for, a tenth of the time that an example may take.
        return dict(zip(self.batch.schema.names, self.batch.columns, strict=True))

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers, or the codes of a dictionary column, without a copy."""
        if name not in self._numbers:
            column = self._columns[name]
            codes = column.indices if pa.types.is_dictionary(column.type) else column
            # Arrow's own way to NumPy imports pandas.
            self._numbers[name] = np.from_dlpack(codes)
        return self._numbers[name]

    def texts(self, name: str) -> Any:
        """Return a column of texts, or the distinct texts of a dictionary column by their codes: an Arrow array."""
        column = self._columns[name]
        return column.dictionary if pa.types.is_dictionary(column.type) else column

    def text(self, name: str, place: int) -> str:
        """Return one of the texts of a column."""
        text: str = self.texts(name)[place].as_py()
        return text

    def lists(self, name: str, row: int) -> list[Any]:
        """Return the list that a row has in a column of lists."""
        values: list[Any] = self._columns[name][row].as_py()
        return values

    def is_in(self, name: str, wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Tell of each row whether its text in a column is one of the wanted ones."""
        import pyarrow.compute as pc

        mask = pc.is_in(self._columns[name], value_set=pa.array(wanted, pa.large_string()))
        member: npt.NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False)
        return member


def record_batch(columns: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Any:
    """Return a record batch of Arrow arrays, or of what they are made from, with facts about the whole."""
    batch = pa.record_batch(dict(columns))
    return batch.replace_schema_metadata({_FACTS: json.dumps(facts or {})})


def index_file(folder: Path, key: Mapping[str, Any]) -> Path:
    """Return where the index of `key` below `folder` is, or is to be."""
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return folder / f"{hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()}.arrow"


def open_index_file(folder: Path, key: Mapping[str, Any], build: Callable[[], Any]) -> ArrowFile:
    """Open the index of `key` below `folder`, building it first when it is not there or damaged.

    Args:
        folder: where indices are; made when missing.
        key: plain JSON types that determine the content of the index.
        build: returns its `record_batch`; called at most once.

    Raises:
        DatasetError: the index cannot be written.
    """
    path = index_file(folder, key)
    with suppress(OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        file = ArrowFile(path)
        _ = file.batch, file.facts
        return file
    # It is absent, cut off, or no index.
    batch = build()
    with index_draft(path) as draft:
        with pa.OSFile(str(draft), "wb") as written, pa.ipc.new_file(written, batch.schema) as writer:
            writer.write_batch(batch)
        seal_index(draft, path.name)
    return ArrowFile(path)
