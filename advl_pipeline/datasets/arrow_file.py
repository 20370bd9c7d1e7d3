"""Indices as memory-mapped Arrow files: built once per content, opened in a millisecond ever after.

An index is one file in Arrow's IPC format with one record batch, named by the digest of its key. The key holds
content digests and reader versions, so a changed file gets another index and a stale one can never be opened.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from advl_pipeline.datasets.roots import index_unwritable
from advl_pipeline.errors import DatasetError

_FACTS = b"advl"
_SUFFIX = ".arrow"


class Texts(Sequence[str]):
    """Texts of an Arrow array, made when asked for."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            several: list[str] = self._array[index].to_pylist()
            return several
        text: str = self._array[index].as_py()
        return text


class Codes(dict[str, int]):
    """Text -> running number."""

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self)
        return number

    def column(self, codes: Any) -> Any:
        """Return a dictionary column of these texts; an int32 array of codes, null where a row has none."""
        return pa.DictionaryArray.from_arrays(codes, pa.array(self, pa.large_string()))


class ArrowFile:
    """The record batch of an index, mapped when first used in any process: it is sent as its path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batch: Any = None
        self._columns: dict[str, Any] = {}
        self._numbers: dict[str, npt.NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_batch": None, "_columns": {}, "_numbers": {}}

    @property
    def batch(self) -> Any:
        """The record batch; its buffers lie in the file."""
        if self._batch is None:
            with pa.memory_map(str(self._path)) as file, pa.ipc.open_file(file) as reader:
                if reader.num_record_batches != 1:
                    raise pa.ArrowInvalid("an index has one record batch")
                self._batch = reader.get_batch(0)
                self._batch.validate()
        return self._batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was recorded of the whole, plain JSON types."""
        facts: Mapping[str, Any] = json.loads(self.batch.schema.metadata[_FACTS])
        return facts

    def _column(self, name: str) -> Any:
        if name not in self._columns:
            self._columns[name] = self.batch.column(name)
        return self._columns[name]

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers, or the codes of a dictionary column, without a copy."""
        if name not in self._numbers:
            column = self._column(name)
            codes = column.indices if pa.types.is_dictionary(column.type) else column
            self._numbers[name] = codes.to_numpy(zero_copy_only=False)
        return self._numbers[name]

    def names(self, name: str) -> Texts:
        """Return the distinct texts of a dictionary column, in the order of their codes."""
        if (key := f"{name}.names") not in self._columns:
            self._columns[key] = Texts(self._column(name).dictionary)
        names: Texts = self._columns[key]
        return names

    def texts(self, name: str) -> Texts:
        """Return a column of texts."""
        return Texts(self._column(name))

    def lists(self, name: str, row: int) -> list[Any]:
        """Return the list that a row has in a column of lists."""
        values: list[Any] = self._column(name)[row].as_py()
        return values


def record_batch(columns: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Any:
    """Return a record batch of Arrow arrays, or of what they are made from, with facts about the whole."""
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    return batch.replace_schema_metadata({_FACTS: json.dumps(facts or {})})


def open_index_file(folder: Path, key: Mapping[str, Any], build: Callable[[], Any]) -> ArrowFile:
    """Open the index of `key` below `folder`, building it first when it is not there or damaged.

    Args:
        folder: where indices lie; made when missing.
        key: plain JSON types that determine the content of the index.
        build: returns its `record_batch`; called at most once.

    Raises:
        DatasetError: the index cannot be written.
    """
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    path = folder / f"{hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()}{_SUFFIX}"
    if (opened := _opened(path)) is not None:
        return opened
    _write(path, build())
    written = _opened(path)
    if written is None:
        raise DatasetError("An index that was just written cannot be read.", where=str(path))
    return written


def _opened(path: Path) -> ArrowFile | None:
    """Map a file; None when it is absent, cut off or not an index."""
    file = ArrowFile(path)
    try:
        _ = file.batch, file.facts
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return file


def _write(path: Path, batch: Any) -> None:
    """Write beside the final file and rename, so that a reader sees all of the index or none."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        draft.replace(path)
    except OSError as error:
        raise index_unwritable(path.parent, error) from None
    finally:
        draft.unlink(missing_ok=True)


def is_member(names: Texts, wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Tell of each text whether it is one of the wanted ones."""
    import pyarrow.compute as pc

    found = pc.is_in(names._array, value_set=pa.array(wanted, pa.large_string()))
    member: npt.NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return member
