"""What is wrong with a dataset, item by item, so that a reader can fail on it or skip, count and list it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from advl_pipeline.base.errors import DatasetError, advise, again

OnError = Literal["fail", "skip", "list"]
"""Fail on the first malformed item; leave malformed items and bad pictures out; or leave malformed items out and look
at no picture (`advl datasets check` does that itself)."""

_MAX_SHOWN = 60
"""Characters of a value in a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: in which file, at which line (0 where lines mean nothing), and what."""

    file: str
    line: int
    why: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Malformed(Exception):
    """Raised inside a reader for one item that cannot be used; the reader adds file and line."""


def shown(value: object) -> str:
    """Return a value as messages show it: a long one is cut short."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def unlike(name: str, value: object, expected: str) -> Malformed:
    """Return the complaint about a field that is not what was expected; long values are cut short."""
    return Malformed(f"field {name!r} is {'missing' if value is None else shown(value)}, expected {expected}")


def unreadable(path: object, error: Exception, *, what: str = "A file", next_command: str = "") -> DatasetError:
    """Return the error of a file that cannot be read, by what the system or the reader said.

    Args:
        what: subject of the sentence.
    """
    why = getattr(error, "strerror", None) or str(error)
    return DatasetError(f"{what} cannot be read.", where=str(path), why=why, next_command=next_command)


def unfetched(what: str, *, where: str, error: Exception) -> DatasetError:
    """Return the error of data of the hub that the network, or their library, did not give.

    Args:
        what: the sentence.
    """
    advice = "look whether the network is there and whether the set has changed, then run the same command again"
    return DatasetError(what, where=where, why=first_line(error), next_command=again(advice))


def first_line(error: Exception) -> str:
    """Return the kind of an error of a library, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class NothingUsable(DatasetError):
    """No item of a split can be used; `problems` says why of each."""

    problems: tuple[Problem, ...] = ()


def nothing_usable(dataset: str, split: str, problems: Sequence[Problem], *, where: str) -> NothingUsable:
    """Return the error of a split whose items were all left out."""
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
    note = "lists all; extract and finetune leave them out, counted, with --on-error skip"
    return DatasetError(
        f"The dataset {dataset} is malformed.",
        where=first.where,
        why=first.why + (f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""),
        next_command=next_command
        or advise(["advl", "datasets", "check", dataset, "--split", split, "--deep"], note=note),
    )
