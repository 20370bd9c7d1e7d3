"""What to type next: an error's own advice, completed with the user's values, or a suggestion of the command."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from advl_pipeline.base.configuration import flag_of
from advl_pipeline.base.errors import Advice, AdvlError, ConfigError, Suggestion, advise, again, suggest_names

SAME_EVERYWHERE = frozenset({"data_root", "text_style", "on_error", "device"})
"""Options with the same meaning in every command; an advised command keeps the user's values for them."""

ELSEWHERE = {
    **dict.fromkeys(("train", "fit", "tune"), "finetune"),
    **dict.fromkeys(("eval", "test"), "evaluate"),
    **dict.fromkeys(("infer", "inference"), "predict"),
    **dict.fromkeys(("--num-epochs", "--num-train-epochs", "--max-epochs", "--epoch"), "--epochs"),
    **dict.fromkeys(("--max-steps", "--num-train-steps", "--step"), "--num-steps"),
    **dict.fromkeys(("--train-batch-size", "--per-device-train-batch-size", "--bs"), "--batch-size"),
    **dict.fromkeys(("--lr", "--rate"), "--learning-rate"),
    **dict.fromkeys(("--gradient-accumulation-steps", "--grad-accum"), "--accumulate"),
    **dict.fromkeys(("--model", "--model-name"), "--student"),
    **dict.fromkeys(("--out", "--output-dir", "--out-dir"), "--output"),
    "--split": "--on",
    "--evaluate-on": "--num-questions",
}
"""Name of a command or option in other programs -> its name here."""

_MISTYPED = 0.8
"""Minimum similarity of a typing error. Below it, the corrected option could take the value in another unit."""

_SECRET = re.compile(r"(://)[^/\s]*@")


@dataclass(slots=True)
class Invocation:
    """The user's command line, and the option values parsed from it before the command failed."""

    group: click.Group
    arguments: Sequence[str]
    values: Mapping[str, Any] = field(default_factory=dict)

    def command(self, words: Sequence[str] | None = None) -> str:
        """Return the command line, or the given words, without secrets in URLs."""
        return _SECRET.sub(r"\1...@", shlex.join(["advl", *(self.arguments if words is None else words)]))

    def next_command(self, error: AdvlError) -> str:
        """Return the text of the line `next:`, never empty."""
        if isinstance(error.why, Suggestion) and (right := self._corrected(error.why.wanted, error.why.nearest)):
            return right
        advice = error.next_command or self._usual_advice(error)
        if not isinstance(advice, Advice):
            return advice
        line = str(advise(*map(self.completed, advice.commands), note=advice.note))
        if advice.again is None:
            return line
        words = self._without(advice.left_out)
        if advice.left_out and not advice.again and words == list(self.arguments):
            return line  # The options are in a file.
        return f"{line}\n         {self.command([*words, *advice.again])}"

    def usage_error(self, error: click.UsageError) -> ConfigError:
        """Return click's error, with the corrected command if only an option name is wrong."""
        if not isinstance(error, click.NoSuchOption):
            return ConfigError(error.format_message(), next_command=shlex.join(self._help()))
        options = error.ctx.command.params if error.ctx is not None else []
        known = [name for item in options if isinstance(item, click.Option) for name in item.opts]
        meant = near_name(error.option_name, known)
        why = suggest_names(error.option_name, [meant], meant=meant) if meant else ""
        failed = ConfigError(f"There is no option {error.option_name}.", why=why)
        failed.next_command = self.next_command(failed)
        return failed

    def completed(self, command: Sequence[str]) -> list[str]:
        """Return an advised command with the user's values of the options that mean the same everywhere."""
        words = list(command)
        if words[0] != "advl":
            return words
        advised, _ = command_of(words[1:], self.group)
        known = {parameter.name for parameter in advised.params} if advised is not None else set()
        for name in sorted(SAME_EVERYWHERE & known & set(self.values)):
            flag = flag_of(name)
            if flag in words:
                del words[words.index(flag) : words.index(flag) + 2]
            words += [flag, str(self.values[name])]
        return words

    def _without(self, flags: Sequence[str]) -> list[str]:
        """Return the user's words without some options and their values."""
        command, _ = command_of(self.arguments, self.group)
        dropped = {
            name: option
            for option in (command.params if command is not None else ())
            if isinstance(option, click.Option) and set(option.opts) & set(flags)
            for name in (*option.opts, *option.secondary_opts)
        }
        kept, words = [], iter(self.arguments)
        for word in words:
            flag, has_value, _ = word.partition("=")
            if flag not in dropped:
                kept.append(word)
            elif not dropped[flag].is_flag and not has_value:
                next(words, None)
        return kept

    def _usual_advice(self, error: AdvlError) -> Advice:
        """Return the advice of the error's class, with the user's values for the words in capitals."""
        file = re.sub(r" \[.*", "", error.where)
        if isinstance(error, ConfigError) and Path(file).suffix == ".toml":
            return again(f"correct {file}, then run the same command again")

        def completed(word: str) -> str:
            if not word.isupper():
                return word
            typed = self.values.get(word.lower()) or ()
            values = [str(value) for value in typed] if isinstance(typed, (tuple, list)) else [str(typed)]
            return next((value for value in values if len(values) == 1 or error.where.startswith(value)), "")

        for advice in error.usual:
            commands = [[completed(word) for word in command] for command in advice.commands]
            if all(map(all, commands)):
                return advise(*commands, note=advice.note, again=advice.again)
        return advise(self._help())

    def _corrected(self, wrong: str, near: str) -> str:
        """Return the user's command with a word replaced; "" if it does not contain that word."""
        if not wrong or not near:
            return ""
        # Match the end of a path only if no complete word matches: `--data pets --output runs/pets`.
        for before in ("^|=", "/"):
            pattern = re.compile(rf"({before}){re.escape(wrong)}($|=)")
            words = [pattern.sub(lambda match: match[1] + near + match[2], word) for word in self.arguments]
            if words != list(self.arguments):
                return self.command(words)
        return ""

    def _help(self) -> list[str]:
        words: list[str] = []
        for word in self.arguments:
            if word.startswith("-"):
                continue
            command, _ = command_of([*words, word], self.group)
            if command is None:
                break
            words.append(word)
            if not isinstance(command, click.Group):
                break
        return ["advl", *words, "--help"]


def near_name(typed: str, known: Iterable[str]) -> str:
    """Return the command or option that an unknown name probably means; "" if unclear."""
    names = {name.replace("-", ""): name for name in known}
    if (here := ELSEWHERE.get(typed)) in names.values():
        return str(here)
    near = difflib.get_close_matches(typed.replace("-", ""), names, n=1, cutoff=_MISTYPED)
    return names[near[0]] if near else ""


def running() -> Invocation:
    """Return the invocation of the running command; empty if it was not started from a command line."""
    context = click.get_current_context()
    root = context.find_root().command
    return context.find_object(Invocation) or Invocation(root if isinstance(root, click.Group) else click.Group(), [])


def what_follows(*command: str) -> str:
    """Return the command to run after a successful one, with the user's values from it."""
    return shlex.join(running().completed(command))


def command_of(words: Sequence[str], group: click.Group) -> tuple[click.Command | None, int]:
    """Return the command that the words name, and how many of them name it (None and 0 if none does)."""
    command: click.Command = group
    for number, word in enumerate(words):
        if not isinstance(command, click.Group):
            return command, number
        if word.startswith("-"):
            continue
        subcommand = command.get_command(click.Context(command), word)
        if subcommand is None:
            return None, 0
        command = subcommand
    return command, len(words)
