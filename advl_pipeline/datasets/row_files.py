"""Files of rows: JSON lines, CSV, Parquet and lists in JSON documents.

A row that cannot be parsed is replaced by its error.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import orjson

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.locations import read_regular, regular_file
from advl_pipeline.datasets.problems import Malformed, unreadable

Numbered = tuple[int, Mapping[str, Any] | Malformed]
"""First line of a row (row number in Parquet) and its columns."""

MALFORMED_FILE = "A file of the dataset is malformed."

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def text_field(record: Mapping[str, Any], name: str) -> str:
    """Return a non-empty string field.

    Raises:
        Malformed: the field is missing, empty or of another type.
    """
    value = record.get(name)
    if not isinstance(value, str) or not value:
        raise Malformed(f"field {name!r} is {'missing' if name not in record else 'not a text'}")
    return value


def parsed_cell(record: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column; parse a text that begins like a list or a dictionary, as JSON or Python literal.

    Raises:
        Malformed: such a text cannot be parsed.
    """
    text = record[name]
    if not isinstance(text, str) or text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            raise Malformed(f"field {name!r} begins like JSON but is not: {error}") from None


def read_table(path: Path) -> Iterator[Numbered]:
    """Yield the rows of a file by its extension: CSV, Parquet, else JSON lines.

    Raises:
        DatasetError: the file cannot be read at all.
    """
    try:
        yield from {".csv": _csv, ".parquet": _parquet}.get(path.suffix, _json_lines)(path)
    except OSError as error:
        raise unreadable(path, error) from None


def _json_lines(path: Path) -> Iterator[Numbered]:
    with regular_file(path, buffering=1 << 20) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            data = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            try:
                record = orjson.loads(data)
            except orjson.JSONDecodeError as error:
                why = "the line is cut off" if not data.rstrip().endswith(b"}") else f"not JSON: {error}"
                yield number, Malformed("the line is not UTF-8" if "UTF-8" in error.msg else why)
            else:
                yield number, record if isinstance(record, dict) else Malformed("the line is not an object")


def _csv(path: Path) -> Iterator[Numbered]:
    # Bytes that are not UTF-8 become surrogates, so that the error can name their line.
    with TextIOWrapper(regular_file(path), "utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = _csv_rows(file)
        number, names = next(rows, (1, []))
        if isinstance(names, Malformed):
            raise DatasetError("The header of the file cannot be read.", where=f"{path}:{number}", why=str(names))
        header = [name.strip() for name in names]
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise DatasetError(
                "The names of columns must differ.", where=f"{path}:{number}", why=f"given twice: {', '.join(twice)}"
            )
        for number, cells in rows:
            if isinstance(cells, Malformed):
                yield number, cells
            elif len(cells) != len(header):
                yield number, Malformed(f"the line has {len(cells)} cells, the header has {len(header)}")
            elif any("\udc80" <= letter <= "\udcff" for cell in cells if not cell.isascii() for letter in cell):
                yield number, Malformed("the line is not UTF-8")
            else:
                yield number, {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, list[str] | Malformed]]:
    """Yield the first line of each non-empty row, and its cells."""
    reader = csv.reader(file, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            if cells := next(reader):
                yield number, cells
        except StopIteration:
            return
        except csv.Error as error:
            # An unclosed quote puts all following lines into its cell.
            yield number, Malformed(f"not CSV, nor are lines {number} to {reader.line_num}: {error}")


def _parquet(path: Path) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with regular_file(path) as file, pq.ParquetFile(file) as table:
            batches = table.iter_batches(batch_size=1024)
            yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), start=1)
    except pa.ArrowException as error:
        raise DatasetError("The file is not readable Parquet.", where=str(path), why=str(error)) from None


Parsed = TypeVar("Parsed")


def checked(
    records: Iterable[tuple[int, Any]], check: Callable[[Any], Parsed]
) -> Iterator[tuple[int, Parsed | Malformed]]:
    """Apply a function to the records of a file; yield each result, or the error, with its line."""
    for line, record in records:
        outcome: Parsed | Malformed
        try:
            if isinstance(record, Malformed):
                raise record
            outcome = check(record)
        except Malformed as error:
            outcome = error
        yield line, outcome


def parse_json_file(path: Path, what: str, parse: Callable[[Any], Parsed]) -> Parsed:
    """Parse a small JSON document with a function.

    Args:
        what: subject of the message that refuses the document, such as "The list of pairs".
        parse: raises `ValueError`, or what indexing raises, for a document of another form.

    Raises:
        DatasetError: the document cannot be read, is not JSON, or has another form.
    """
    try:
        return parse(json.loads(read_regular(path).decode("utf-8")))
    except OSError as error:
        raise unreadable(path, error, what=what) from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{what} is malformed.",
            where=str(path),
            why=str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}",
        ) from None


def json_items(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Yield the lines and the items of a long list in a JSON document, one at a time.

    A 350 MB annotation file would become 4 GB of dictionaries.

    Args:
        key: the list is the value of this key of a top-level object. A top-level list is accepted too.

    Raises:
        DatasetError: the file is not UTF-8, not JSON, truncated, or lacks the list; the message names the line.
    """
    text, line, counted = "", 1, 0
    try:
        data = read_regular(path)
        text = data.decode("utf-8-sig")
        for offset, item in _document(text, key):
            line += text.count("\n", counted, offset)
            counted = offset
            yield line, item
        return
    except OSError as error:
        line, why = 0, error.strerror or str(error)
    except UnicodeDecodeError as error:
        line, why = data.count(b"\n", 0, error.start) + 1, f"not UTF-8: {error.reason}"
    except RecursionError as error:
        why = str(error)
    except json.JSONDecodeError as error:
        line, why = error.lineno, error.msg if error.msg.startswith(_NO_LIST) else f"not JSON: {error.msg}"
        if error.msg.startswith("Unterminated string") or not text[error.pos :].strip():
            line, why = text.count("\n") + 1, "the file is cut off" if text.strip() else "the file is empty"
    raise DatasetError(MALFORMED_FILE, where=f"{path}:{line}" if line else str(path), why=why)


_NO_LIST = "no list"
"""Prefix of the error for valid JSON without the list."""

_DECODE = json.JSONDecoder().raw_decode
_MARK = re.compile(r"[ \t\n\r]*([\[{,:][ \t\n\r]*|[\]}]|)")


def _document(text: str, key: str) -> Iterator[tuple[int, Any]]:
    """Yield the offsets and items of the list of a document."""
    try:
        mark, at = _next_mark(text, 0, "[{")
    except json.JSONDecodeError as error:
        _DECODE(text, error.pos)  # Raises if the text is not JSON at all.
        raise json.JSONDecodeError(f"{_NO_LIST}: {error.msg}", text, error.pos) from None
    at = yield from _items(text, at) if mark == "[" else _members(text, at, key)
    if rest := text[at:].lstrip():
        raise json.JSONDecodeError("something follows the end of the document", text, len(text) - len(rest))


def _members(text: str, at: int, key: str) -> Generator[tuple[int, Any], None, int]:
    """Yield the items of the list under a key of an object; return the end of the object."""
    mark, has_list = "}" if text.startswith("}", at) else ",", False
    at += mark == "}"
    while mark == ",":
        name, at = _DECODE(text, at)
        _, at = _next_mark(text, at, ":")
        if name == key and text.startswith("[", at):
            has_list = True
            at = yield from _items(text, _next_mark(text, at, "[")[1])
        else:
            _, at = _DECODE(text, at)
        mark, at = _next_mark(text, at, ",}")
    if not has_list:
        raise json.JSONDecodeError(f"{_NO_LIST} {key!r}", text, at - 1)
    return at


def _items(text: str, at: int) -> Generator[tuple[int, Any], None, int]:
    """Yield the items of the list with its first item at an offset; return the end of the list."""
    if text.startswith("]", at):
        return at + 1
    mark = ","
    while mark == ",":
        start = at
        item, at = _DECODE(text, start)
        yield start, item
        mark, at = _next_mark(text, at, ",]")
    return at


def _next_mark(text: str, at: int, expected: str) -> tuple[str, int]:
    """Return the punctuation at an offset, which must be an expected one, and the offset of the text after it."""
    match = _MARK.match(text, at)
    if match is None or not match[1] or match[1][0] not in expected:
        raise json.JSONDecodeError(
            f"expected {' or '.join(map(repr, expected))}", text, match.start(1) if match else at
        )
    return match[1][0], match.end()
