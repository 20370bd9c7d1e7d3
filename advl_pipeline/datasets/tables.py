"""Tables on disk, row by row: JSON lines, CSV and Parquet. A row that cannot be parsed says so in its place."""

from __future__ import annotations

import csv
import mmap
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import orjson

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.errors import (
    DatasetError,
    again,
)


class Line(NamedTuple):
    """One line that is not blank: number from 1, byte offset, bytes with the line end."""

    number: int
    offset: int
    data: bytes


def scan_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file that are not blank."""
    offset = 0
    with path.open("rb", buffering=1 << 20) as file:
        for number, data in enumerate(file, start=1):
            if not data.isspace():
                yield Line(number, offset, data)
            offset += len(data)


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse one line into an object.

    Raises:
        Malformed: not UTF-8, not JSON, cut off, or not an object.
    """
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "UTF-8" in error.msg:
            raise Malformed("the line is not UTF-8") from None
        cut_off = not data.rstrip().endswith(b"}")
        raise Malformed("the line is cut off" if cut_off else f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise Malformed("the line is not an object")
    return record


def text_field(record: Mapping[str, Any], name: str) -> str:
    """Return a string field that is not empty.

    Raises:
        Malformed: it is missing, empty or of another type.
    """
    value = record.get(name)
    if not isinstance(value, str) or not value:
        raise Malformed(f"field {name!r} is {'missing' if name not in record else 'not a text'}")
    return value


class MappedLines:
    """Random access to the lines of a file by byte offset and length; opens when first used, in any process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map[offset : offset + length]


Numbered = tuple[int, Mapping[str, Any] | Malformed]
"""First line of a row (row number in Parquet) and its columns."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_table(path: Path) -> Iterator[Numbered]:
    """Yield the rows of a file by its ending, which must be one of `names.TABLE_SUFFIXES`.

    Raises:
        DatasetError: the file cannot be read at all.
    """
    return _READERS[path.suffix](path)


def _json_lines(path: Path) -> Iterator[Numbered]:
    for line in scan_lines(path):
        data = line.data.removeprefix(_BYTE_ORDER_MARK) if line.number == 1 else line.data
        try:
            yield line.number, parse_object(data)
        except Malformed as error:
            yield line.number, error


def _csv(path: Path) -> Iterator[Numbered]:
    # Bytes that are not UTF-8 survive as surrogates, so that the line which holds them can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header: list[str] = []
        for number, cells in _csv_rows(file):
            if isinstance(cells, Malformed) and not header:
                raise DatasetError(
                    "The header of the file cannot be read.",
                    where=f"{path}:{number}",
                    why=str(cells),
                    next_command=again("mend the names of the columns, then give the same command again"),
                )
            if isinstance(cells, Malformed):
                yield number, cells
            elif not header:
                header = _header(path, cells)
            else:
                yield number, _csv_record(header, cells)


def _csv_rows(file: TextIO) -> Iterator[tuple[int, list[str] | Malformed]]:
    """Yield the first line of each row and its cells.

    A quote that is never closed takes all lines after it into its cell. Which of them are rows of their own cannot be
    told, so reading goes on at the line after the one where the bad row begins: no sound row is lost.
    """
    taken: list[str] = []
    again: deque[str] = deque()

    def next_line() -> str:
        line = again.popleft() if again else file.readline()
        taken.append(line)
        return line

    reader = csv.reader(iter(next_line, ""), strict=True)
    number = 1
    while True:
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield number, Malformed(f"not CSV: {error}")
            again.extendleft(reversed([line for line in taken[1:] if line]))
            reader = csv.reader(iter(next_line, ""), strict=True)
            number += 1
            continue
        if cells is None:
            return
        if cells:
            yield number, cells
        number += len(taken)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(
            "Two columns of the file have one name.",
            where=f"{path}:1",
            why=", ".join(twice),
            next_command=again("name one of them otherwise, then give the same command again"),
        )
    return names


def _csv_record(header: list[str], cells: list[str]) -> Mapping[str, Any] | Malformed:
    if len(cells) != len(header):
        return Malformed(f"the line has {len(cells)} cells, the header has {len(header)}")
    if any(not cell.isascii() and any("\udc80" <= letter <= "\udcff" for letter in cell) for cell in cells):
        return Malformed("the line is not UTF-8")
    return {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}


def _parquet(path: Path) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            "The file is not readable Parquet.",
            where=str(path),
            why=str(error),
            next_command=again("write the file anew, then give the same command again"),
        ) from None


_READERS: Mapping[str, Callable[[Path], Iterator[Numbered]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
