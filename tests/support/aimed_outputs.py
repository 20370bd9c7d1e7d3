"""Every output option of every command, and a folder of things that no command may overwrite."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path

import click
from own_rows import choice_row, write_json_lines

from advl_cli.reference import commands
from advl_pipeline.base.configuration import Output, declared, flag_of

FILES = ("file", "new")
"""Kinds of outputs that are not ADVL folders."""


class OutputOption(typing.NamedTuple):
    """An output option of a command."""

    command: str
    config: type[typing.Any]
    name: str
    output: Output

    def __str__(self) -> str:
        return f"{self.command} {flag_of(self.name)}"


def configurations() -> Iterator[tuple[str, type[typing.Any]]]:
    """Yield each command with a configuration, and its class."""
    for name, command in commands():
        hints = typing.get_type_hints(inspect.unwrap(command.callback)) if command.callback is not None else {}
        if dataclasses.is_dataclass(cls := hints.get("config")):
            yield name.removeprefix("advl "), typing.cast(type[typing.Any], cls)


OUTPUTS = [
    OutputOption(command, cls, name, declaration.option.output)
    for command, cls in configurations()
    for name, declaration in declared(cls).items()
    if declaration.option.output is not None
]


def words_of(option: OutputOption, path: Path, *more: str) -> list[str]:
    """Return a command line whose inputs do not exist."""
    command = dict(commands())[f"advl {option.command}"]
    arguments = {item.name for item in command.params if isinstance(item, click.Argument)}
    words = option.command.split()
    for name, declaration in declared(option.config).items():
        if name != option.name and declaration.field.default is dataclasses.MISSING:
            words += [] if name in arguments else [flag_of(name)]
            words.append(declaration.option.such_as or "nothing")
    return [*words, flag_of(option.name), str(path), *more]


def _write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")


def make_things(folder: Path, *, cache: Path) -> Path:
    """Create a folder with one thing of each kind: ADVL folders, foreign files, links, a pipe."""
    folder.mkdir()
    shutil.copytree(cache, folder / "cache")
    _write(folder / "scenes", corpus={"corpus": "scenes"})
    _write(folder / "study", study={"study": {}})
    _write(folder / "run", run={"options": {}}, student={"student": "scenes-small"}, result={})
    _write(folder / "student", student={"student": "scenes-small"})
    write_json_lines(folder / "data.jsonl", [choice_row(number) for number in range(20)])
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "results.csv").write_text("name,score\na,1\n", encoding="utf-8")
    (folder / "empty.json").touch()
    (folder / "into-cache").symlink_to(folder / "cache")
    (folder / "linked.json").symlink_to(folder / "cache" / "identity.json")
    (folder / "dangling.json").symlink_to(folder / "nothing.json")
    os.mkfifo(folder / "pipe")
    return folder
