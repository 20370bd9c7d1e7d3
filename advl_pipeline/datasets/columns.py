"""A memory-mapped column store for indices: built once per content, opened in milliseconds ever after.

An index is a folder of `.npy` columns named by the digest of its key. The key holds content digests and reader
versions, so a changed file gets another index and a stale one can never be opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.problems import Problem
from advl_pipeline.datasets.roots import index_unwritable
from advl_pipeline.errors import DatasetError

Columns = Mapping[str, npt.NDArray[Any]]

_DONE = "columns.json"


class StringColumn(Sequence[str]):
    """Strings in one UTF-8 blob with offsets; decoded when asked for."""

    def __init__(self, columns: Columns, name: str) -> None:
        self._blob = columns[f"{name}.utf8"]
        self._offsets = columns[f"{name}.offsets"]

    @staticmethod
    def encode(name: str, strings: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Return the two columns that hold the strings."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in strings]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(item) for item in encoded], out=offsets[1:])
        return {f"{name}.utf8": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}.offsets": offsets}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return bytes(self._blob[start:end]).decode("utf-8", "surrogatepass")


class Codes(dict[str, int]):
    """Text -> running number."""

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self)
        return number


def open_columns(folder: Path, key: Mapping[str, Any], build: Callable[[], Columns]) -> Columns:
    """Open the index of `key` below `folder`, building it first when it is not there.

    Args:
        folder: where indices lie; made when missing.
        key: plain JSON types that determine the content of the columns.
        build: computes the columns; called at most once.

    Raises:
        DatasetError: the index cannot be written.
    """
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    home = folder / hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
    opened = _open(home)
    if opened is not None:
        return opened
    columns = build()
    try:
        _write(home, columns, canonical)
    except OSError as error:
        raise index_unwritable(folder, error) from None
    written = _open(home)
    if written is None:
        raise DatasetError("An index that was just written cannot be read.", where=str(home))
    return written


def _open(home: Path) -> Columns | None:
    """Map the columns of a complete index; None when it is absent or its files are not as long as recorded."""
    try:
        sizes: dict[str, int] = json.loads((home / _DONE).read_text())["sizes"]
        if any((home / f"{name}.npy").stat().st_size != size for name, size in sizes.items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return {name: _map(home / f"{name}.npy") for name in sizes}


def _map(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _write(home: Path, columns: Columns, canonical_key: str) -> None:
    """Write to a folder beside the final one and rename it, so that a reader sees all columns or none."""
    draft = home.with_name(f"{home.name}.{uuid.uuid4().hex}.draft")
    draft.mkdir(parents=True)
    try:
        sizes = {}
        for name, column in columns.items():
            path = draft / f"{name}.npy"
            np.save(path, column, allow_pickle=False)
            sizes[name] = path.stat().st_size
        (draft / _DONE).write_text(json.dumps({"key": json.loads(canonical_key), "sizes": sizes}))
        if _open(home) is None:
            shutil.rmtree(home, ignore_errors=True)
            try:
                draft.replace(home)
            except OSError:
                if _open(home) is None:  # otherwise another process was quicker with the same columns
                    raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def problems_in(columns: Columns, path: Path) -> list[Problem]:
    """Return what the index of an annotation file says to be wrong in it."""
    places = zip(columns["problem.line"].tolist(), StringColumn(columns, "problem"), strict=True)
    return [Problem(file=str(path), line=line, why=why) for line, why in places]
