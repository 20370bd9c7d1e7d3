"""Commands defined by one configuration dataclass each; its fields are the flags, so flags and TOML keys agree.

A command is a generator: it first yields the document for `--json` and then prints the readable output.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from advl_pipeline.base.compute import DeviceConfig, require_device
from advl_pipeline.base.configuration import (
    COMMAND_LINE,
    Declared,
    build_config,
    by_field,
    declared,
    earlier_flags,
    flag_of,
    json_text,
    kinds_of,
)
from advl_pipeline.base.inert import inert_json
from advl_pipeline.base.locations import Url
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.toml import read_toml

from .advice import running

if TYPE_CHECKING:
    from advl_pipeline.datasets.spec import DatasetSpec

Function = TypeVar("Function", bound=Callable[..., Any])

_FEW_OPTIONS = 12
_ALL = "advl.help_all"
_EXIT_CODE = "advl.exit_code"


class SectionedCommand(click.Command):
    """A command whose help groups its flags by component and shows rare ones on request."""

    options: Mapping[str, Declared] = MappingProxyType({})
    """The options of its configuration."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments; flags of an earlier version stand for those of today, in what is advised too."""
        given = running()
        given.arguments = self._in_flags_of_today(given.arguments)
        return super().parse_args(ctx, self._in_flags_of_today(args))

    def _in_flags_of_today(self, args: Sequence[str]) -> list[str]:
        earlier, words = earlier_flags(self.options), list[str]()
        for arg in args:
            flag, equals, value = arg.partition("=")
            *leading, last = earlier.get(flag, [flag])
            words += [*leading, last + equals + value]
        return words

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        hidden = {
            name for name, declaration in self.options.items() if declaration.option.rare and not ctx.meta.get(_ALL)
        }
        for title, flags in by_section(self.get_params(ctx), self.options).items():
            shown = [flag.get_help_record(ctx) for flag in flags if flag.name not in hidden]
            rows = [row for row in shown if row is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def by_section(
    parameters: Iterable[click.Parameter], options: Mapping[str, Declared]
) -> dict[str, list[click.Option]]:
    """Return the flags under each heading, the configuration's own first; few flags share one heading."""
    sections: dict[str, list[click.Option]] = {}
    flags = [item for item in parameters if isinstance(item, click.Option)]
    for flag in sorted(flags, key=lambda flag: flag.name not in options):
        declaration = options.get(flag.name or "") if len(flags) > _FEW_OPTIONS else None
        sections.setdefault((declaration and declaration.title) or "Options", []).append(flag)
    return sections


def config_command(
    cls: type[Any], name: str, *, group: click.Group | None = None, arguments: Iterable[str] = ()
) -> Callable[[Callable[..., Iterator[Any]]], click.Command]:
    """Turn a function that receives `config` and yields its document (see `json_option`) into a command.

    The command has a flag for each option of the configuration, and `--config FILE`, whose keys set their defaults.

    Args:
        cls: the configuration dataclass; its fields are declared with `configuration.option`.
        name: of the command.
        group: the parent group.
        arguments: names of fields that are positional arguments instead of flags.
    """

    def decorate(function: Callable[..., Iterator[Any]]) -> click.Command:
        options, printing = declared(cls), json_option(function)

        @functools.wraps(printing)
        def run(**flags: Any) -> Any:
            options_of_line = {name: flags.pop(name) for name in ("config_file", *options)}
            return printing(config=_config_from_flags(cls, options_of_line), **flags)

        command: Any = run
        for option, declaration in reversed(options.items()):
            if option in arguments:
                several = typing.get_origin(declaration.hint) is tuple
                # Not required on the command line: the --config file may set it.
                metavar = option.upper() + ("..." if several else "")
                command = click.argument(option, required=False, nargs=-1 if several else 1, metavar=metavar)(command)
            else:
                command = _flag(declaration)(command)
        if any(declaration.option.rare for declaration in options.values()):
            show_all = "Show all options, with the rare ones, and exit."
            command = click.option(
                "--help-all", is_flag=True, expose_value=False, is_eager=True, callback=_show_all, help=show_all
            )(command)
        file = click.Path(path_type=Path)
        help_text = "TOML file with defaults for these options; flags override it."
        command = click.option("--config", "config_file", type=file, help=help_text)(command)
        made = click.command(name, cls=SectionedCommand)(command)
        made.options = options
        if group is not None:
            group.add_command(made)
        return made

    return decorate


def _show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _config_from_flags(cls: type[Any], flags: dict[str, Any]) -> Any:
    """Build a configuration from the `--config` file, then from the given flags.

    Raises:
        MissingParameter: an argument is neither in the file nor on the command line.
    """
    file: Path | None = flags.pop("config_file", None)
    typed = {key: value for key, value in flags.items() if value is not None and value != ()}
    layer = read_toml(file) if file else {}
    stated = {name: value for name, (_, value) in by_field(cls, layer, where=str(file)).items()} | typed
    running().values = stated
    context = click.get_current_context()
    for parameter in context.command.params:
        if isinstance(parameter, click.Argument) and parameter.name not in stated:
            raise click.MissingParameter(ctx=context, param=parameter)
    config = build_config(cls, layer, where=str(file) if file else COMMAND_LINE, flags=typed)
    # Before the command opens anything. Its function checks again, for callers from Python.
    require_outputs(config)
    if isinstance(config, DeviceConfig):
        require_device(config.device)
    return config


def json_option(function: Callable[..., Iterator[Any]]) -> Callable[..., int]:
    """Add `--json`, which prints the yielded result as one JSON document; without it, the generator continues."""

    @functools.wraps(function)
    def run(*, as_json: bool, **arguments: Any) -> int:
        for document in function(**arguments):
            if as_json:
                print_json(document)
                break
        return cast(int, click.get_current_context().meta.get(_EXIT_CODE, 0))

    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(run)


def exit_with(code: int) -> None:
    """Make the running command exit with a code after printing."""
    click.get_current_context().meta[_EXIT_CODE] = code


def print_json(value: Any) -> None:
    """Print a JSON document on stdout; records become objects, and values without a JSON type become text."""
    click.echo(inert_json(json_text(value, default=str)))


def read_and_print(name: str, data_root: Path | None) -> DatasetSpec:
    """Find and read a dataset (`read_dataset`); print the task, columns and counts of rows on stderr."""
    from advl_pipeline.datasets.registry import read_dataset

    dataset = read_dataset(name, data_root)
    if dataset.line:
        click.echo(dataset.line, err=True)
    return dataset


def _flag(declaration: Declared) -> Callable[[Function], Function]:
    field, option, flag = declaration.field, declaration.option, flag_of(declaration.field.name)
    notes = [option.bounds] if option.bounds else []
    if field.default is dataclasses.MISSING:
        notes.append("required")
    elif field.default is not False and field.default not in (None, (), ""):
        shown = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        notes.append(f"default: {shown}")
    parsed = {"type": None} if declaration.hint is bool else _parsed_as(declaration.hint)
    return click.option(
        field.name,
        *([f"{flag}/--no-{flag[2:]}"] if declaration.hint is bool else [flag]),
        *([option.also] if option.also else []),
        default=None,
        help=option.help + (f" [{'; '.join(notes)}]" if notes else ""),
        **parsed | ({"metavar": option.metavar} if option.metavar else {}),
    )


def _parsed_as(hint: Any) -> dict[str, Any]:
    """Return how click parses an option of a type; a value that is not a number stays text for the configuration."""
    if typing.get_origin(hint) is tuple:
        return _parsed_as(typing.get_args(hint)[0]) | {"multiple": True}
    kinds, words = kinds_of(hint)
    if words:
        return {"type": _NumberOrWord(words)} if int in kinds else {"type": str, "metavar": f"[{'|'.join(words)}]"}
    if Path in kinds:
        return {"type": str, "metavar": "PATH OR URL" if Url in kinds else "PATH"}
    return {"type": next(kind for kind in kinds if kind is not type(None))}


class _NumberOrWord(click.types.IntParamType):
    """An integer, or one of a few words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self.name = f"integer or {' or '.join(words)}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self._words else super().convert(value, param, ctx)
