"""What to type next: an error's own advice completed with what the user gave, or one that the command suggests."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import click

from advl_pipeline.configuration import flag_of
from advl_pipeline.errors import (
    AdvlError,
    ConfigError,
    CorruptCache,
    DatasetError,
    IdentityMismatch,
    Suggestion,
    WeightsUnavailable,
)

SAME_EVERYWHERE = frozenset(
    {"data_root", "text_style", "label_order", "on_error", "device", "disk_cache", "disk_cache_gb"}
)
"""Options that mean the same in every command: a command that is advised keeps what the user gave for them."""

_AGAIN = "the same command"
_BREAK = re.compile(r"""(?<!\S)'[^']*'(?:"'"'[^']*')*|( && | \(|, |; )""")
"""What `shlex.quote` quoted, or where a command ends outside of quotes: the group is there for the latter alone."""
_COMMAND = re.compile(r"(?:^|(?<= ))advl(?= [a-z-])")
_SECRET = re.compile(r"(://)[^/\s]*@")


@dataclass(slots=True)
class Invocation:
    """What the user typed, and what of it the command understood before it failed."""

    arguments: Sequence[str]
    given: Mapping[str, Any] = field(default_factory=dict)

    def command(self) -> str:
        """Return the command line, without the secrets that a URL in it may hold."""
        return _SECRET.sub(r"\1...@", shlex.join(["advl", *self.arguments]))


def next_command(error: AdvlError, group: click.Group, invocation: Invocation) -> str:
    """Return what the line `next:` says; never nothing."""
    if isinstance(error.why, Suggestion):
        corrected = _corrected(invocation, error.why.wanted, error.why.nearest)
        if corrected:
            return corrected
    advice = error.next_command or _usual_advice(error, group, invocation)
    told = "".join(_completed(piece, group, invocation.given) for piece in _pieces(advice))
    return f"{told}\n         {_again(advice, group, invocation)}" if _AGAIN in advice else told


def _again(advice: str, group: click.Group, invocation: Invocation) -> str:
    """Return the user's command, with the switch that the advice asks for."""
    asked = re.search(rf"{_AGAIN}(?: again)? with (--[a-z-]+)", advice)
    command, _ = command_of(invocation.arguments, group)
    options = command.params if command is not None else []
    flags = [one for one in options if isinstance(one, click.Option) and one.is_flag]
    switches = [name for one in flags for name in (*one.opts, *one.secondary_opts)]
    added = [asked[1]] if asked and asked[1] in switches else []
    return Invocation(arguments=[*invocation.arguments, *added]).command()


def what_follows(command: str) -> str:
    """Return a command that follows on success, with what the user gave to the one that ran."""
    context = click.get_current_context().find_root()
    invocation = context.find_object(Invocation)
    if invocation is None or not isinstance(context.command, click.Group):
        return command
    return _completed(command, context.command, invocation.given)


def after_usage_error(error: click.UsageError, group: click.Group, invocation: Invocation) -> str:
    """Return the user's command with the mistyped word put right, or the help of the command."""
    wrong, near = "", ""
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        wrong, near = error.option_name, error.possibilities[0]
    elif isinstance(error, click.BadParameter) and error.param is not None:
        if isinstance(error.param.type, click.Choice):
            named = re.match(r"'(.*?)' is not one of", error.message)
            wrong = named[1] if named else ""
            near = _nearest(wrong, [str(choice) for choice in error.param.type.choices])
    elif error.ctx is not None and isinstance(error.ctx.command, click.Group):
        named = re.search(r"^No (?:such )?command '(.*?)'", error.message)
        wrong = named[1] if named else ""
        near = _nearest(wrong, error.ctx.command.list_commands(error.ctx))
    return _corrected(invocation, wrong, near) or _help_of(group, invocation)


def command_of(words: Sequence[str], group: click.Group) -> tuple[click.Command | None, int]:
    """Return the command that the words name, and how many of them name it (0 and None when none does)."""
    command: click.Command = group
    for number, word in enumerate(words):
        if not isinstance(command, click.Group):
            return command, number
        if word.startswith("-"):
            continue
        found = command.get_command(click.Context(command), word)
        if found is None:
            return None, 0
        command = found
    return command, len(words)


def _pieces(advice: str) -> list[str]:
    """Split an advice at the ends of its commands; what parts them is a piece too, and a quoted word stays whole."""
    breaks = [found.span(1) for found in _BREAK.finditer(advice) if found[1]]
    places = [0, *chain.from_iterable(breaks), len(advice)]
    return [advice[start:end] for start, end in pairwise(places)]


def _completed(piece: str, group: click.Group, given: Mapping[str, Any]) -> str:
    """Give a command of an advice the user's own values of the options that mean the same everywhere."""
    begins = _COMMAND.search(piece)
    if begins is None:
        return piece
    try:
        words = shlex.split(piece[begins.start() :])
    except ValueError:
        return piece
    command, _ = command_of(words[1:], group)
    known = {parameter.name for parameter in command.params} if command is not None else set()
    for name in sorted(SAME_EVERYWHERE & known & set(given)):
        flag = flag_of(name)
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
        words += [flag, str(given[name])]
    return piece[: begins.start()] + shlex.join(words)


def _usual_advice(error: AdvlError, group: click.Group, invocation: Invocation) -> str:
    given = invocation.given
    if isinstance(error, ConfigError):
        file = re.sub(r" \[.*", "", error.where)
        if Path(file).suffix == ".toml":
            return f"mend {file}, then give the same command again"
        return _help_of(group, invocation)
    dataset = given.get("dataset")
    if isinstance(error, DatasetError) and dataset:
        split = given.get("split")
        return shlex.join(["advl", "datasets", "check", str(dataset), *(["--split", str(split)] if split else [])])
    if isinstance(error, CorruptCache):
        told = given.get("cache", ())
        caches = [str(cache) for cache in (told if isinstance(told, (tuple, list)) else (told,))]
        for cache in caches:
            if len(caches) == 1 or error.where.startswith(cache):
                return shlex.join(["advl", "cache", "verify", cache])
    if isinstance(error, WeightsUnavailable):
        for name, kind in (("teacher", "teachers"), ("student", "students")):
            if given.get(name):
                return shlex.join(["advl", kind, "show", str(given[name])])
    if isinstance(error, (DatasetError, IdentityMismatch, WeightsUnavailable, CorruptCache)):
        return _help_of(group, invocation)
    return "give the same command again"


def _corrected(invocation: Invocation, wrong: str, near: str) -> str:
    """Return the user's command with a word replaced; "" when it does not hold that word."""
    if not wrong or not near:
        return ""
    pattern = re.compile(rf"(^|[=/]){re.escape(wrong)}($|=)")
    words = [pattern.sub(lambda found: found[1] + near + found[2], word) for word in invocation.arguments]
    if words == list(invocation.arguments):
        return ""
    return Invocation(arguments=words).command()


def _help_of(group: click.Group, invocation: Invocation) -> str:
    words: list[str] = []
    for word in invocation.arguments:
        if word.startswith("-"):
            continue
        command, _ = command_of([*words, word], group)
        if command is None:
            break
        words.append(word)
        if not isinstance(command, click.Group):
            break
    return shlex.join(["advl", *words, "--help"])


def _nearest(wanted: str, known: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)), "")
