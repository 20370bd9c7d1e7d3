"""Items of a large JSON list, one at a time, so that a 350 MB annotation file never becomes 4 GB of dictionaries."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from advl_pipeline.errors import (
    DatasetError,
    advise,
)

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_text(path: Path, *, dataset: str) -> str:
    """Read a UTF-8 file.

    Raises:
        DatasetError: it cannot be read, or a byte is not UTF-8 (its line is named).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"A file of the dataset {dataset} cannot be read.", where=str(path), why=error.strerror or str(error)
        ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"A file of the dataset {dataset} is not UTF-8.", where=f"{path}:{line}", why=str(error.reason)
        ) from None


class JsonItems:
    """The items of one list in a JSON document.

    Args:
        path: named in errors.
        key: the list is the value of this key of a top-level object; a bare top-level list is taken as it is.
        dataset: named in errors.

    After the iteration `fields` holds the other top-level values; it is empty for a bare list.
    """

    def __init__(self, text: str, *, path: Path, key: str, dataset: str) -> None:
        self._text = text
        self._path = path
        self._key = key
        self._dataset = dataset
        self.fields: dict[str, Any] = {}

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield (character offset, item); offsets become lines by `line_at`.

        Raises:
            DatasetError: not JSON, cut off, or without the list; the line is named.
        """
        at = self._skip(0)
        if self._peek(at) == "[":
            at = yield from self._items(at)
        elif self._peek(at) == "{":
            at = yield from self._members(at)
        else:
            raise self._error(at, f"neither an object with {self._key!r} nor a list")
        at = self._skip(at)
        if at != len(self._text):
            raise self._error(at, "something follows the end of the document")

    def line_at(self, offset: int) -> int:
        """Return the line, from 1, of a character offset."""
        return self._text.count("\n", 0, offset) + 1

    def _members(self, at: int) -> Generator[tuple[int, Any], None, int]:
        found = False
        at = self._skip(at + 1)
        while self._peek(at) != "}":
            name, at = self._value(at)
            at = self._expect(at, ":")
            if name == self._key and self._peek(at) == "[":
                found = True
                at = yield from self._items(at)
            else:
                self.fields[name], at = self._value(at)
            at = self._separator(at, "}")
        if not found:
            raise self._error(at, f"no list {self._key!r}")
        return at + 1

    def _items(self, at: int) -> Generator[tuple[int, Any], None, int]:
        at = self._skip(at + 1)
        while self._peek(at) != "]":
            start = at
            item, at = self._value(at)
            yield start, item
            at = self._separator(at, "]")
        return at + 1

    def _separator(self, at: int, closing: str) -> int:
        """Step over a comma that another member follows, or stop at the closing bracket."""
        at = self._skip(at)
        if self._peek(at) == closing:
            return at
        at = self._expect(at, ",")
        if self._peek(at) == closing:
            raise self._error(at, "a comma that nothing follows")
        return at

    def _value(self, at: int) -> tuple[Any, int]:
        try:
            return _DECODER.raw_decode(self._text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            offset = error.pos if isinstance(error, json.JSONDecodeError) else at
            if str(error).startswith("Unterminated string"):
                offset = len(self._text)
            raise self._error(offset, f"not JSON: {error}") from None

    def _expect(self, at: int, mark: str) -> int:
        at = self._skip(at)
        if self._peek(at) != mark:
            raise self._error(at, f"expected {mark!r}")
        return self._skip(at + 1)

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at

    def _peek(self, at: int) -> str:
        return self._text[at] if at < len(self._text) else ""

    def _error(self, offset: int, why: str) -> DatasetError:
        if self._skip(offset) >= len(self._text):
            why = "the file is cut off" if self._text.strip() else "the file is empty"
        return DatasetError(
            f"A file of the dataset {self._dataset} is malformed.",
            where=f"{self._path}:{self.line_at(offset)}",
            why=why,
            next_command=advise(["advl", "datasets", "check", self._dataset]),
        )
