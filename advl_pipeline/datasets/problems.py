"""Problems of a dataset, item by item, so that a reader can fail on them or skip, count and list them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from advl_pipeline.base.errors import DatasetError, advise, again

OnError = Literal["fail", "skip", "list"]
"""Fail on the first malformed item; skip malformed items and bad pictures; or skip malformed items and open no
picture (`advl datasets check` checks pictures itself)."""

_MAX_SHOWN = 60
"""Maximum number of characters of a value in a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem: its file, its line (0 if lines do not apply), and a description."""

    file: str
    line: int
    why: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Malformed(Exception):
    """Error for one unusable item, raised inside a reader, which adds file and line."""


def shown(value: object) -> str:
    """Return a value for a message, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def written_number(text: str) -> int | None:
    """Return the whole number that a text writes in the digits 0 to 9; None for another text.

    More than a thousand digits are no number of anything, and converting them takes long.
    """
    return int(text) if re.fullmatch("[0-9]{1,1000}", text) else None


def unlike(name: str, value: object, expected: str) -> Malformed:
    """Return the error of a field with an unexpected value; truncate long values."""
    return Malformed(f"field {name!r} is {'missing' if value is None else shown(value)}, expected {expected}")


def unreadable(path: object, error: Exception, *, what: str = "A file", next_command: str = "") -> DatasetError:
    """Return the error of an unreadable file, with the reason from the system or the reader.

    Args:
        what: subject of the message.
    """
    why = getattr(error, "strerror", None) or str(error)
    return DatasetError(f"{what} cannot be read.", where=str(path), why=why, next_command=next_command)


class FileReplaced(DatasetError):
    """A file of a dataset that was replaced while a command ran."""


def replaced(path: object) -> FileReplaced:
    """Return the error of a file that no longer has the bytes that its digest was made of."""
    return FileReplaced(
        "A file of the dataset was replaced while this command ran.",
        where=str(path),
        why="its bytes are not those that the dataset was opened with",
        next_command=again("let the program that replaces the files finish, then run the same command again"),
    )


def unfetched(what: str, *, where: str, error: Exception) -> DatasetError:
    """Return the error of hub data that could not be downloaded.

    Args:
        what: the message.
    """
    return DatasetError(
        what,
        where=where,
        why=first_line(error),
        next_command=again(
            "look whether the network is there and whether the set has changed, then run the same command again"
        ),
    )


def first_line(error: Exception) -> str:
    """Return the type of a library's error and the first line of its message."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class NothingUsable(DatasetError):
    """Error of a split without a usable item; `problems` gives the reason for each item."""

    problems: tuple[Problem, ...] = ()


def nothing_usable(dataset: str, split: str, problems: Sequence[Problem], *, where: str) -> NothingUsable:
    """Return the error of a split with no item left."""
    error = NothingUsable(
        f"The split {split} of {dataset} holds no usable item.",
        where=problems[0].where if problems else where,
        why=f"{len(problems)} items were skipped, the first: {problems[0].why}" if problems else "the file is empty",
    )
    error.problems = tuple(problems)
    return error


def refuse(dataset: str, split: str, problems: Sequence[Problem], *, next_command: str = "") -> DatasetError:
    """Return the error that names the first problem and counts the others."""
    first = problems[0]
    return DatasetError(
        f"The dataset {dataset} is malformed.",
        where=first.where,
        why=first.why + (f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""),
        next_command=next_command
        or advise(
            ["advl", "datasets", "check", dataset, "--split", split, "--deep"],
            note="lists all; extract and finetune leave them out, counted, with --on-error skip",
        ),
    )
