"""What to type next: an error's own advice completed with what the user gave, or one that the command suggests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from advl_pipeline.configuration import flag_of
from advl_pipeline.errors import Advice, AdvlError, ConfigError, Suggestion, advise, again

SAME_EVERYWHERE = frozenset(
    {"data_root", "text_style", "label_order", "on_error", "device", "disk_cache", "disk_cache_gb"}
)
"""Options that mean the same in every command: a command that is advised keeps what the user gave for them."""

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
    if not isinstance(advice, Advice):
        return advice
    commands = [_completed(command, group, invocation.given) for command in advice.commands]
    told = str(advise(*commands, note=advice.note))
    if advice.again is None:
        return told
    words = _without(advice.left_out, group, invocation.arguments)
    if advice.left_out and words == list(invocation.arguments):
        return told  # They stand in a file.
    own = Invocation(arguments=[*words, *advice.again]).command()
    return f"{told}\n         {own}"


def what_follows(*command: str) -> str:
    """Return a command that follows on success, with what the user gave to the one that ran."""
    context = click.get_current_context().find_root()
    invocation = context.find_object(Invocation)
    if invocation is None or not isinstance(context.command, click.Group):
        return shlex.join(command)
    return shlex.join(_completed(command, context.command, invocation.given))


def remedy_of(error: AdvlError) -> str:
    """Return what the line `next:` says of an error that did not stop the command which ran."""
    context = click.get_current_context().find_root()
    invocation = context.find_object(Invocation)
    if invocation is None or not isinstance(context.command, click.Group):
        return error.next_command
    return next_command(error, context.command, invocation)


def after_usage_error(error: click.UsageError, group: click.Group, invocation: Invocation) -> str:
    """Return the user's command with the mistyped option put right, or the help of the command."""
    if (
        isinstance(error, click.NoSuchOption)
        and error.possibilities
        and (right := _corrected(invocation, error.option_name, error.possibilities[0]))
    ):
        return right
    return shlex.join(_help_of(group, invocation))


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


def _completed(command: Sequence[str], group: click.Group, given: Mapping[str, Any]) -> list[str]:
    """Give a command of ours the user's own values of the options that mean the same everywhere."""
    words = list(command)
    if words[0] != "advl":
        return words
    found, _ = command_of(words[1:], group)
    known = {parameter.name for parameter in found.params} if found is not None else set()
    for name in sorted(SAME_EVERYWHERE & known & set(given)):
        flag = flag_of(name)
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
        words += [flag, str(given[name])]
    return words


def _without(flags: Sequence[str], group: click.Group, arguments: Sequence[str]) -> list[str]:
    """Return the words of a command but for some options and what is given for them."""
    command, _ = command_of(arguments, group)
    options = [item for item in command.params if isinstance(item, click.Option)] if command is not None else []
    dropped = {
        name: item for item in options if set(item.opts) & set(flags) for name in (*item.opts, *item.secondary_opts)
    }
    kept, words = [], iter(arguments)
    for word in words:
        flag, has_value, _ = word.partition("=")
        if flag not in dropped:
            kept.append(word)
        elif not dropped[flag].is_flag and not has_value:
            next(words, None)
    return kept


def _usual_advice(error: AdvlError, group: click.Group, invocation: Invocation) -> Advice:
    """Return the advice of the error's class, with what the user gave for the words in capitals."""
    file = re.sub(r" \[.*", "", error.where)
    if isinstance(error, ConfigError) and Path(file).suffix == ".toml":
        return again(f"mend {file}, then give the same command again")

    def completed(word: str) -> str:
        if not word.isupper():
            return word
        given = invocation.given.get(word.lower()) or ()
        values = [str(value) for value in given] if isinstance(given, (tuple, list)) else [str(given)]
        return next((value for value in values if len(values) == 1 or error.where.startswith(value)), "")

    for advice in error.usual:
        commands = [[completed(word) for word in command] for command in advice.commands]
        if all(map(all, commands)):
            return advise(*commands, note=advice.note, again=advice.again)
    return advise(_help_of(group, invocation))


def _corrected(invocation: Invocation, wrong: str, near: str) -> str:
    """Return the user's command with a word replaced; "" when it does not hold that word."""
    if not wrong or not near:
        return ""
    # The end of a path is meant only where no word is the wrong one by itself: `--data pets --output runs/pets`.
    for before in ("^|=", "/"):
        pattern = re.compile(rf"({before}){re.escape(wrong)}($|=)")
        words = [pattern.sub(lambda found: found[1] + near + found[2], word) for word in invocation.arguments]
        if words != list(invocation.arguments):
            return Invocation(arguments=words).command()
    return ""


def _help_of(group: click.Group, invocation: Invocation) -> list[str]:
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
    return ["advl", *words, "--help"]
