"""Tables on disk, row by row: JSON lines, CSV and Parquet. A row that cannot be parsed says so in its place."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.line_files import parse_object, scan_lines
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.errors import DatasetError

Numbered = tuple[int, Mapping[str, Any] | Malformed]
"""Line of a row (row number in Parquet) and its columns."""

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
        reader = csv.reader(file, strict=True)
        header: list[str] = []
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, Malformed(f"not CSV: {error}")
                return
            if cells is None:
                return
            if not cells:
                continue
            if not header:
                header = _header(path, cells)
            else:
                yield reader.line_num, _csv_record(header, cells)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(
            "Two columns of the file have one name.",
            where=f"{path}:1",
            why=", ".join(twice),
            next_command="name one of them otherwise, then give the same command again",
        )
    return names


def _csv_record(header: list[str], cells: list[str]) -> Mapping[str, Any] | Malformed:
    if len(cells) != len(header):
        return Malformed(f"the line has {len(cells)} cells, the header has {len(header)}")
    if any(not cell.isascii() and any("\udc80" <= letter <= "\udcff" for letter in cell) for cell in cells):
        return Malformed("the line is not UTF-8")
    return {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}


def _parquet(path: Path) -> Iterator[Numbered]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DatasetError(
            "Reading Parquet needs pyarrow.", where=str(path), next_command="pip install 'advl-pipeline[parquet]'"
        ) from None
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
            next_command="write the file anew, then give the same command again",
        ) from None


_READERS: Mapping[str, Callable[[Path], Iterator[Numbered]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
