"""Flags derived from a command's configuration dataclass, so that a flag and a TOML key can never drift apart."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import click

from advl_pipeline.configuration import (
    build_config,
    flag_of,
    option_types,
    options_of,
    read_toml,
    renamed,
    say_renamed,
    sections,
)
from advl_pipeline.errors import ConfigError
from advl_pipeline.locations import Url
from advl_pipeline.outputs import require_outputs

from .advice import Invocation

Function = TypeVar("Function", bound=Callable[..., Any])


class SectionedOption(click.Option):
    """A flag that says under which heading of the help it stands, and whether only `--help-all` shows it."""

    def __init__(self, *arguments: Any, section: str, rare: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section
        self.rare = rare


class SectionedCommand(click.Command):
    """A command whose help lists its flags by the component that they configure, the rare ones on request."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        parameters = super().get_params(ctx)
        if not any(_is_rare(option) for option in parameters):
            return parameters

        def show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
            if wanted:
                ctx.meta[_ALL] = True
                click.echo(ctx.get_help())
                ctx.exit()

        every = click.Option(
            ["--help-all"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=show_all,
            help="Show the options that few users set, too, and exit.",
        )
        return [*parameters, every]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, options in by_section(self.get_params(ctx)).items():
            shown = [option for option in options if ctx.meta.get(_ALL) or not _is_rare(option)]
            rows = [row for option in shown if (row := option.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


_ALL = "advl.help_all"


def _is_rare(parameter: click.Parameter) -> bool:
    return isinstance(parameter, SectionedOption) and parameter.rare


def by_section(parameters: Iterable[click.Parameter]) -> dict[str, list[click.Option]]:
    """Return the flags under each heading, those of the configuration first."""
    found: dict[str, list[click.Option]] = {}
    options = [item for item in parameters if isinstance(item, click.Option)]
    for item in sorted(options, key=lambda item: not isinstance(item, SectionedOption)):
        found.setdefault(getattr(item, "section", "") or "Options", []).append(item)
    return found


def config_options(cls: type[Any], *, arguments: Iterable[str] = ()) -> Callable[[Function], Function]:
    """Add one flag per field of `cls`, and `--config FILE` whose keys are the defaults of the flags.

    The function is given `config`, built from them, in their place.

    Args:
        cls: the configuration dataclass; its fields are declared with `configuration.option`.
        arguments: names of fields that are positional arguments instead of flags.
    """
    positional = set(arguments)

    def decorate(function: Function) -> Function:
        hints, fields = option_types(cls), options_of(cls)

        @functools.wraps(function)
        def run(**flags: Any) -> Any:
            earlier = {name: (flag_of(old), flags.pop(_earlier(name))) for old, name in renamed(cls).items()}
            given = {name: flags.pop(name) for name in ("config_file", *fields)}
            for name, (flag, value) in earlier.items():
                if value is None or value == ():
                    continue
                if given[name] is not None and given[name] != ():
                    raise ConfigError(f"{flag} is an earlier name of {_shown(name, positional)}: give one of them.")
                say_renamed(flag, _shown(name, positional))
                given[name] = value
            config = _config_from_flags(cls, given, positional)
            return function(config=config, **flags)

        command: Any = run
        for name, title in reversed(sections(cls).items()):
            if name in positional:
                kind, several = _click_type(hints[name])
                # Not required of the line: it may stand in the file of --config.
                command = click.argument(
                    name,
                    type=kind,
                    required=False,
                    nargs=-1 if several else 1,
                    metavar=_shown(name, positional) + ("..." if several else ""),
                )(command)
            else:
                command = _flag(fields[name], hints[name], title)(command)
        for name in renamed(cls).values():
            kind, several = _click_type(hints[name])
            was = click.option(
                _earlier(name),
                fields[name].metadata["was"],
                cls=SectionedOption,
                section="",
                type=kind,
                multiple=several,
                default=None,
                hidden=True,
                help=f"The name of an earlier release for {_shown(name, positional)}.",
            )
            command = was(command)
        decorated: Function = click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="TOML file with defaults for these options; flags win.",
        )(command)
        return decorated

    return decorate


def _earlier(name: str) -> str:
    return f"earlier_{name}"


def _shown(name: str, positional: Collection[str]) -> str:
    return name.upper() if name in positional else flag_of(name)


def _config_from_flags(cls: type[Any], flags: dict[str, Any], positional: Collection[str]) -> Any:
    """Build a configuration from the file named by `--config`, then from the flags that were given.

    Raises:
        MissingParameter: an argument is neither in the file nor on the command line.
    """
    file: Path | None = flags.pop("config_file", None)
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    fields = [field for field in options_of(cls).values() if field.metadata.get("also")]
    also = {str(field.metadata["also"]).lstrip("-"): field.name for field in fields}
    layers = []
    if file:
        table = read_toml(file)
        if twice := [f"{name} and {field}" for name, field in also.items() if {name, field} <= table.keys()]:
            raise ConfigError("An option stands there twice.", where=str(file), why=f"{twice[0]} are the same")
        layers = [{also.get(key, key): value for key, value in table.items()}]
    told = {key.replace("-", "_"): value for layer in (*layers, given) for key, value in layer.items()}
    context = click.get_current_context()
    invocation = context.find_object(Invocation)
    if invocation is not None:
        invocation.given = told
    for parameter in context.command.params:
        if parameter.name in positional and parameter.name not in told:
            raise click.MissingParameter(ctx=context, param=parameter)
    config = build_config(cls, *layers, given, where=str(file) if file else "command line")
    # Before the command opens anything; what it does itself asks again, for callers from Python.
    require_outputs(config)
    return config


def json_option(function: Function) -> Function:
    """Add `--json`: print the result as one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def print_json(value: Any) -> None:
    """Print a JSON document on stdout; records are objects of their fields, what has no form of its own is text."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else str(value)


def print_confusion(label_names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Print a confusion matrix: rows are true classes."""
    click.echo("  true \\ called   " + " ".join(f"{name:>13}" for name in label_names))
    for name, row in zip(label_names, counts, strict=True):
        click.echo(f"  {name:<15} " + " ".join(f"{count:>13}" for count in row))


def _flag(field: dataclasses.Field[Any], hint: Any, title: str) -> Callable[[Function], Function]:
    kind, multiple = _click_type(hint)
    flag = flag_of(field.name)
    notes = [str(field.metadata["range"])] if field.metadata["range"] else []
    if field.default is dataclasses.MISSING:
        notes.append("required")
    elif field.default is not False and field.default not in (None, (), ""):
        shown = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        notes.append(f"default: {shown}")
    text = field.metadata["help"] + (f" [{'; '.join(notes)}]" if notes else "")
    if kind is bool:
        return click.option(
            f"{flag}/--no-{flag[2:]}",
            default=None,
            help=text,
            cls=SectionedOption,
            section=title,
            rare=field.metadata["rare"],
        )
    flags = [flag, *([field.metadata["also"]] if field.metadata["also"] else [])]
    return click.option(
        field.name,
        *flags,
        cls=SectionedOption,
        section=title,
        rare=field.metadata["rare"],
        type=kind,
        multiple=multiple,
        default=None,
        help=text,
        metavar=field.metadata["metavar"],
    )


def _click_type(hint: Any) -> tuple[Any, bool]:
    origin = typing.get_origin(hint)
    arguments = [argument for argument in typing.get_args(hint) if argument not in (type(None), Ellipsis)]
    if origin in (Union, types.UnionType):
        if Url in arguments:
            return _PathOrUrl(), False
        words = [word for argument in arguments for word in typing.get_args(argument)]
        if words:
            return _NumberOrWord(words), False
        return _click_type(arguments[0])
    if origin is tuple:
        return _click_type(arguments[0])[0], True
    if origin is Literal:
        return click.Choice([str(argument) for argument in arguments]), False
    if hint is Path:
        return _PathOnly(path_type=Path), False
    return hint, False


class _NumberOrWord(click.types.IntParamType):
    """A whole number, or one of a few words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self.name = f"integer or {' or '.join(words)}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self._words else super().convert(value, param, ctx)


class _PathOrUrl(click.types.StringParamType):
    """Kept as it was typed: a path would swallow one of the two slashes of a URL."""

    name = "path or url"


class _PathOnly(click.Path):
    """A path; what looks like a URL is left for the configuration to refuse in words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)
