"""JSONL files: scanned once for an index, then read line by line at known offsets."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from advl_pipeline.datasets.problems import Malformed


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
