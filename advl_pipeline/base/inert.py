"""Make texts of anybody's data inert in the medium that shows them: a spreadsheet, Markdown, a terminal or JSON.

A class name, a question or a file name may come from a stranger. HTML is escaped by the template engine.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that command a terminal or change the direction of a text."""

_MOVES_OF_BARS = re.compile(r"(\n|\x1b\[A)*")
"""What tqdm writes to reach the line of one of several bars."""


def inert_cell(cell: str) -> str:
    """Return a cell that no spreadsheet runs as a formula, by a leading apostrophe. Numbers are unchanged."""
    try:
        float(cell)
    except ValueError:
        return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
    return cell


class Markdown(str):
    """A text that is Markdown already."""

    __slots__ = ()


def inert_markdown(text: object) -> str:
    """Return a text as Markdown that shows it: on one line, without HTML, links, pictures, code or table cells."""
    if isinstance(text, Markdown):
        return text
    escaped = re.sub(r"([\\|`])", r"\\\1", str(text).replace("&", "&amp;").replace("<", "&lt;"))
    # A link or a picture is brackets with what follows them.
    escaped = re.sub(r"\](?=[(\[:])", r"]\\", escaped)
    # Renderers link a bare address.
    return " ".join(escaped.splitlines()).replace("://", "&#58;//").replace("www.", "www&#46;")


def inert_code(text: str) -> Markdown:
    """Return a text for a fenced block of Markdown, which it cannot close."""
    return Markdown(text.replace("```", "'''"))


def inert_text(text: str) -> str:
    """Return a text without terminal control characters and changes of text direction."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def inert_json(text: str) -> str:
    """Return a JSON document whose strings are the same, with what commands a terminal escaped."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class InertStream:
    """A text stream that writes `inert_text`; a progress bar may return to the start of its line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        is_move = _MOVES_OF_BARS.fullmatch(text) is not None
        returns = text[: len(text) - len(text.lstrip("\r"))]
        self._stream.write(text if is_move else returns + inert_text(text[len(returns) :]))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        # A library that found the bytes below would write past this class.
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)


def make_streams_inert() -> None:
    """Replace stdout and stderr of this process by inert ones, in a worker process."""
    sys.stdout = InertStream(sys.stdout)
    sys.stderr = InertStream(sys.stderr)


@contextmanager
def inert_streams() -> Iterator[None]:
    """Write inert texts alone to stdout and stderr inside the block."""
    before = sys.stdout, sys.stderr
    make_streams_inert()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
