"""Output checks: whether a command may write to the paths of its options, verified before any work.

An option that names an output declares what the command writes there (`configuration.option(output=...)`). These
declarations define all outputs of a command; all its other paths are inputs.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from advl_pipeline.base.atomic import require_no_folder, writing
from advl_pipeline.base.configuration import Configuration, Output, declared, flag_of, option, option_values
from advl_pipeline.base.errors import ConfigError, StorageError, advise, again
from advl_pipeline.base.folders import CACHE_NOTES, cache_note, folder_kind, may_note, require_folder, require_outside
from advl_pipeline.base.locations import Location

_HEAD_BYTES = 4096
"""Bytes read from a file to identify the program that wrote it."""


@dataclass(frozen=True, kw_only=True)
class ReplaceOptions(Configuration):
    """Option that permits replacing an existing file at the output path."""

    replace: bool = option(False, help="Overwrite an existing file that this command did not write.", identity="none")


def require_outputs(config: Any, *, reads: Iterable[str | Path] = (), **places: Location) -> None:
    """Refuse a command whose outputs would replace something else. Nothing is written.

    An output may not be inside an ADVL folder of another kind or replace an input of the same command. An existing
    file is replaced only if it begins like this command's own output, or with `--replace`.

    Args:
        config: the command's configuration.
        reads: additional inputs that the configuration does not name.
        places: option -> its path, for outputs at default paths.

    Raises:
        ConfigError: an output would replace something else.
        StorageError: the folder of a file is not writable.
    """
    outputs: dict[str, tuple[Path, Output]] = {}
    inputs = list(_paths(tuple(reads)))
    options = declared(type(config))
    for name, value in (option_values(config) | places).items():
        output = options[name].option.output
        if output is None:
            inputs += _paths(value)
        elif isinstance(value, Path):
            outputs[name] = value, output
    for name, (path, output) in outputs.items():
        with writing(path):
            match output.makes:
                case "folders":
                    require_outside(path / "any", option=flag_of(name))
                    _require_writable(path.absolute(), option=flag_of(name))
                case "new" | "file":
                    _require_file(config, name, path, output, inputs=inputs)
                case kind:
                    require_folder(path, kind, option=flag_of(name))
                    if folder_kind(path) != kind:
                        _require_writable(path.absolute(), option=flag_of(name))
                    if kind == "cache":
                        _require_notes(path, option=flag_of(name))


def _require_notes(cache: Path, *, option: str) -> None:
    for ending in CACHE_NOTES:
        note = cache_note(cache, ending)
        if not may_note(note) and not note.is_dir():
            raise ConfigError(
                "ADVL keeps a note of this name next to the cache, and the file there is not ADVL's.",
                where=str(note),
                why="it is a link" if note.is_symlink() else "it does not begin as this command's files do",
                next_command=f"move it away, or give another {option}",
            )


def _require_file(config: Any, name: str, path: Path, output: Output, *, inputs: Sequence[Path]) -> None:
    another, resolved = f"give another {flag_of(name)}", path.resolve()

    def refusal(what: str, why: str = "", advice: str = another) -> ConfigError:
        return ConfigError(what, where=str(path), why=why, next_command=advice)

    # Whether it is at such a file's usual path in an ADVL folder that the command was given.
    is_at_home = output.home is not None and any(
        resolved.is_relative_to(home) and fnmatch(resolved.relative_to(home).as_posix(), output.home[1])
        for home in (folder.resolve() for folder in _paths(getattr(config, output.home[0])))
    )
    if not is_at_home:
        require_outside(path, option=flag_of(name))
    if output.makes == "new" and os.path.lexists(path):
        raise refusal("The output exists already.")
    if path.is_symlink() and not path.exists():
        raise refusal("The output is a link to nothing.", "it would be written where the link points")
    if path.exists() and any(map(path.samefile, inputs)):
        raise refusal("The output would take the place of an input.", "the command reads it")
    require_no_folder(path)
    _require_writable(path.absolute().parent, option=flag_of(name))
    if not path.exists():
        return
    if not path.is_file():
        raise refusal("The output is no plain file.", "there is a device or a pipe")
    with path.open("rb") as file:
        if re.match(output.begins, file.read(_HEAD_BYTES)) is not None:
            return
    if not is_at_home and any(resolved.is_relative_to(folder.resolve()) for folder in inputs if folder.is_dir()):
        raise refusal("The output would take the place of an input.", "it is in a folder that the command reads")
    if not getattr(config, "replace", False):
        raise refusal(
            "A file exists that this command did not write.",
            "it does not begin as this command's files do",
            again(f"{another}, or replace the existing file", "--replace"),
        )


def _require_writable(folder: Path, *, option: str) -> None:
    """Refuse a folder that cannot be created or written; it, or its nearest existing parent, determines why."""
    above = next(place for place in (folder, *folder.parents) if place.exists())
    if not above.is_dir():
        why = f"{above} is a file"
    elif not os.access(above, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(above).f_flag & os.ST_RDONLY else errno.EACCES
        why = f"{above}: {os.strerror(number)}"
    else:
        return
    raise StorageError(
        "The output could not be written.",
        where=str(folder),
        why=why,
        next_command=advise(note=f"give another {option}", again=(option, "ELSEWHERE"), left_out=(option,)),
    )


def _paths(value: Any) -> Iterator[Path]:
    """Yield the local paths that a value may name: a dataset is a name or a file."""
    if isinstance(value, tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, Path) or (isinstance(value, str) and value and "\0" not in value):
        with suppress(OSError):
            # A text too long for a file name is not a path.
            if Path(value).exists():
                yield Path(value)
