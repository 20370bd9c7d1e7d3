"""Errors a user can act on: each states what happened, where, why, and the next command to type.

The command line prints them without a traceback and exits with the class's code. The codes are part of the public
interface (`docs/exit-codes.md`).
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from typing import ClassVar


class Advice(str):
    """What to type next: commands as lists of words, a note, and whether the user's own command follows.

    `again` contains words to add to the user's command, None if it does not follow; `left_out` are flags to remove
    from it. As text an advice reads `COMMAND && COMMAND   (NOTE)`, or just the note.
    """

    __slots__ = ("again", "commands", "left_out", "note")
    again: tuple[str, ...] | None
    commands: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]
    note: str


def advise(
    *commands: Sequence[str], note: str = "", again: Sequence[str] | None = None, left_out: Sequence[str] = ()
) -> Advice:
    """Return an advice with commands, each given as a list of words."""
    shown = " && ".join(map(shlex.join, commands))
    advice = Advice(f"{shown}   ({note})" if shown and note else shown or note)
    advice.commands, advice.left_out = tuple(map(tuple, commands)), tuple(left_out)
    advice.note, advice.again = note, None if again is None else tuple(again)
    return advice


def again(note: str, *added: str) -> Advice:
    """Return the advice to follow the note and then run the user's own command again, with some words added."""
    return advise(note=note, again=added)


def enumeration(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def leave_out(*flags: str) -> Advice:
    """Return the advice to run the user's own command again without some options."""
    return advise(note=f"leave out {enumeration(flags)}", again=(), left_out=flags)


class AdvlError(Exception):
    """Base of all errors that ADVL raises on purpose.

    Args:
        what: one sentence that states the failure.
        where: the file, shard, sample, option or line at fault.
        why: the cause found there.
        next_command: an `Advice` with the command to run next, or a short instruction without one; needed only if
            the `usual` advice of the class is not enough.
    """

    exit_code = 1
    usual: ClassVar[tuple[Advice, ...]] = (again("run the same command again"),)
    """Default advice of errors without their own: the command line prints the first that can be completed.

    A word in capitals stands for the user's value of the option of that name. If none can be completed, the advice is
    the help of the command.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", next_command: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.next_command = next_command

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.why:
            parts.append(f"  why:   {self.why}")
        if self.next_command:
            parts.append(f"  next:  {self.next_command}")
        return "\n".join(parts)


class ConfigError(AdvlError):
    """An unusable option, study file or name."""

    exit_code = 2
    usual = ()


def ineffective(*flags: str, why: str) -> ConfigError:
    """Return the error for options without effect on the requested work.

    Args:
        flags: the options.
        why: a clause.
    """
    return ConfigError(
        f"{enumeration(flags)} has no effect here.", where=flags[0], why=why, next_command=leave_out(*flags)
    )


def name_too_long(name: str, *, where: str = "") -> ConfigError:
    """Return the error for a name that no file can have."""
    return ConfigError(
        "A file name is too long.", where=where, why=f"it has {len(name):,} characters: {name[:40]}..."
    )


class IdentityMismatch(AdvlError):
    """A cache, a checkpoint or a run made under settings other than the requested ones."""

    exit_code = 3
    usual = ()


class CorruptCache(AdvlError):
    """A cache whose bytes do not match its records."""

    exit_code = 4
    usual = (advise(["advl", "cache", "verify", "CACHE"]),)


class DatasetError(AdvlError):
    """A dataset that is missing, malformed or inconsistent."""

    exit_code = 5
    usual = (
        advise(["advl", "datasets", "check", "DATASET", "--split", "SPLIT"]),
        advise(["advl", "datasets", "check", "DATASET"]),
    )


class WeightsUnavailable(AdvlError):
    """Weights of a teacher or student that are not on this machine and cannot be fetched."""

    exit_code = 6
    usual = (advise(["advl", "teachers", "show", "TEACHER"]), advise(["advl", "students", "show", "STUDENT"]))


class StorageError(AdvlError):
    """A full or failed disk; earlier commits are intact, and the same command resumes."""

    exit_code = 7
    usual = (again("free space or repair the disk, then run the same command again: it resumes"),)


class InUse(StorageError):
    """Another process is writing to this path; its output is intact."""

    usual = (again("wait until it ends, or stop it, then run the same command again"),)


class NotAllowed(StorageError):
    """A file or a folder that this user may not read or write."""


class ClusterError(AdvlError):
    """A Ray cluster that cannot be reached, or whose workers keep dying; the same command resumes."""

    exit_code = 8
    usual = (again("fix the error of the other process, then run the same command again: it resumes"),)


class NotFinite(AdvlError):
    """An infinite or NaN loss, gradient or weight in training; the last checkpoint is kept."""

    exit_code = 9


class Interrupted(AdvlError):
    """A command stopped by a signal; the same command resumes."""

    exit_code = 130
    usual = (again("run the same command again: it resumes"),)


def unknown_name(
    what: str, wanted: str, known: Iterable[str], *, where: str = "", note: str = "", next_command: str = ""
) -> ConfigError:
    """Return the error for an unknown name, with the nearest known names; see `suggest_names`."""
    return ConfigError(what, where=where, why=suggest_names(wanted, known, note=note), next_command=next_command)


class Suggestion(str):
    """The text of `suggest_names`, with the wanted name and the nearest known one ("" if none is near)."""

    __slots__ = ("nearest", "wanted")
    wanted: str
    nearest: str


def suggest_names(wanted: str, known: Iterable[str], *, meant: str = "", note: str = "") -> Suggestion:
    """Return a readable list of the known names nearest to `wanted`, or all of them if none is near.

    Args:
        meant: the intended name, if known.
        note: appended to the list.
    """
    known = sorted(set(known))
    near = [meant] if meant else difflib.get_close_matches(wanted, known, n=4, cutoff=0.4)
    listed = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    suggestion = Suggestion(listed + note)
    suggestion.wanted, suggestion.nearest = wanted, near[0] if near else ""
    return suggestion
