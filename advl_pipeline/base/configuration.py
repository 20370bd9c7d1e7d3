"""Configuration: one frozen dataclass per command, filled from a TOML file and then from flags.

A command's dataclass is the only place where an option is declared, with its help and, for a number, its range.
The command line derives its flags from the fields (`cli/flags.py`), a `--config run.toml` gives defaults, flags
win, and an unknown key is an error. Ranges are checked whenever a configuration is made, from Python too.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import json
import math
import stat
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union

from advl_pipeline.base.errors import AdvlError, ConfigError, enumeration, ineffective, name_too_long, unknown_name
from advl_pipeline.base.folders import FolderKind
from advl_pipeline.base.locations import Url, local_folder, parse_location

ConfigT = TypeVar("ConfigT")

_MOST_BITS = 63
"""Bits of an integer in the libraries that receive the options."""

Identity = Literal["value", "content", "provenance", "none"]
"""How an option enters the identity of a result. `value`: by its value. `content`: by the content of the file or
folder it names, which may move but not change. `provenance`: not at all; it is a location, recorded as provenance.
`none`: not at all; it controls how the work is done."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What a command writes at the path of an option; `outputs.require_outputs` refuses everything else.

    `makes`: an ADVL folder of that kind; `folders`: such folders below the path; `new`: a file or a folder at an
    unused path; `file`: one file. `begins` is a regular expression that matches the beginning of every file that the
    command writes, in any of its formats. `home` is the option that names the ADVL folder of such files, with the
    pattern of their names in it.
    """

    makes: FolderKind | Literal["folders", "new", "file"]
    begins: bytes = rb"\Z."
    home: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """The declaration of an option, besides its name, type and default.

    Args:
        help: description shown by `--help`.
        metavar: placeholder of the value in `--help`.
        minimum: smallest number, inclusive; `above` is the exclusive bound.
        maximum: largest number, inclusive; `below` is the exclusive bound.
        above: see `minimum`.
        below: see `maximum`.
        multiple_of: the number must be an integer multiple of this one.
        also: a second name of the flag.
        formerly: its flag in an earlier version, which is still read and not shown.
        when_off: the value that its `--no-` flag, and false in a file, had in an earlier version, as a switch.
        recorded_as: key in the identity of a result, where an option that was renamed keeps its earlier one.
        such_as: an example value, printed if a required option is missing.
        rare: few users set it; only `--help-all` shows it.
        identity: how the option enters the identity of a result; see `Identity`.
        output: what the command writes at the path, if the option names an output; every other path is an input.
        needs: facts without which the option has no effect; the first unmet one is named; see `unused_options`.
    """

    help: str
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    multiple_of: int | None = None
    also: str | None = None
    formerly: str | None = None
    when_off: str | None = None
    recorded_as: str | None = None
    such_as: str | None = None
    rare: bool = False
    identity: Identity = "value"
    output: Output | None = None
    needs: tuple[str, ...] = ()

    def allows(self, value: float) -> bool:
        """Return whether a number is finite and within the bounds."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )

    @property
    def bounds(self) -> str:
        """The allowed numbers, in words; "" if any number is allowed."""
        words = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        limits = [] if self.multiple_of is None else [f"a multiple of {self.multiple_of}"]
        return ", ".join([*limits, *(f"{word} {bound:.15g}" for word, bound in words.items() if bound is not None)])


def option(default: Any = dataclasses.MISSING, **declared: Any) -> Any:
    """Declare a field of a command's configuration; the arguments are those of `Option`.

    Types understood by the command line: bool, int, float, str, Path, Path | Url, Literal[...], `int | Literal[...]`,
    `X | None` and `tuple[X, ...]` (a flag that may be repeated). Files may also contain tables: `Mapping[str, X]` and
    dataclasses. Without a default the option is required.
    """
    return dataclasses.field(default=default, metadata={"option": Option(**declared)})


def rare_option(default: Any = dataclasses.MISSING, **declared: Any) -> Any:
    """Declare an option that few users set, as `option` does; only `--help-all` shows it."""
    return option(default, rare=True, **declared)


def bounded(default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """Declare a number that is set in a file and has no flag, with its range as in `Option`."""
    return option(default, help="", **bounds)


def component(kind: type[Any]) -> Any:
    """Declare a component of a configuration; in files and as flags, its options belong to the configuration."""
    return dataclasses.field(default=kind(), metadata={"component": kind})


class Declared(NamedTuple):
    """An option of a configuration: its field, type and declaration, and the title of its help section.

    The title may be "".
    """

    field: dataclasses.Field[Any]
    hint: Any
    option: Option
    title: str


def declared(cls: type[Any]) -> dict[str, Declared]:
    """Return the options of a configuration in help order: those of the bases, then those of the components.

    A configuration may consist of several classes; each has its own `title`.
    """
    return _declared(cls)  # type: ignore[arg-type]


# Cached: a study makes thousands of configurations.
@functools.cache
def _declared(cls: type[Any]) -> dict[str, Declared]:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    declaring = {name: part for part in reversed(cls.__mro__) for name in inspect.get_annotations(part)}
    options: dict[str, Declared] = {}
    for part in cls.__mro__:
        for name, field in fields.items():
            if declaring[name] is not part or "component" in field.metadata:
                continue
            stated = field.metadata.get("option", Option(help=""))
            options[name] = Declared(field, hints[name], stated, part.__dict__.get("title", ""))
    for field in fields.values():
        if "component" in field.metadata:
            options |= declared(field.metadata["component"])
    return options


def option_values(config: Any) -> dict[str, Any]:
    """Return name -> value of every option of a configuration, including those of its components."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values |= option_values(value) if "component" in field.metadata else {field.name: value}
    return values


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Base of all configurations. It refuses a number outside the range of its option, whatever its source.

    It also refuses a path that no file can have, and an input that is a pipe or a device, which may never end.
    """

    def __post_init__(self) -> None:
        options = declared(type(self))
        for field in dataclasses.fields(self):
            if field.name not in options:
                continue  # A component checks its own options.
            for value in _items(getattr(self, field.name)):
                if isinstance(value, Path):
                    _check_place(value, field.name, options[field.name].option)
                elif isinstance(value, (int, float)) and not isinstance(value, bool):
                    _check_number(value, field.name, options[field.name].option)


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _items(item)
    else:
        yield value


def _check_place(path: Path, name: str, option: Option) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise name_too_long(str(path), where=flag_of(name)) from None
        return
    except ValueError:
        raise ConfigError(
            "A path cannot be used.",
            where=flag_of(name),
            why=f"it has a character that no path can have: {str(path)!r}",
        ) from None
    if option.output is None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ConfigError(
            f"{flag_of(name)} names neither a file nor a folder.",
            where=str(path),
            why="it is a pipe or a device, which may never end",
        )


def _check_number(value: float, name: str, option: Option) -> None:
    shown = flag_of(name) if option.help else name
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ConfigError(
            f"{shown} is too large a number.",
            why=f"it takes {value.bit_length()} bits; at most {_MOST_BITS} are held",
        )
    if not option.allows(value):
        raise ConfigError(f"{shown} must be {option.bounds or 'a finite number'}.", why=f"got {value!r}")


def options_without(cls: type[Any], values: Mapping[str, Any], *left_out: Identity) -> dict[str, Any]:
    """Return the values without those of options with one of these identity kinds.

    Args:
        values: field name -> value; names that are not fields are kept.
        left_out: the identity kinds to leave out.
    """
    gone = {name for name, declaration in declared(cls).items() if declaration.option.identity in left_out}
    return {name: value for name, value in values.items() if name not in gone}


ANY = object()
"""The value of a gone option that changed no result."""


def options_of_now(
    stored: Mapping[str, Any], gone: Mapping[str, Any], *, refused: Callable[[str], AdvlError]
) -> dict[str, Any]:
    """Return recorded options without those of earlier versions.

    Args:
        stored: field name -> value; None means that the option was not given.
        gone: option of an earlier version -> the value that matches the present behaviour, or `ANY`.
        refused: returns the error for a gone option at another value, given as "name = value".
    """
    given = {name: value for name, value in stored.items() if value is not None}
    for name in given.keys() & gone.keys():
        if gone[name] is not ANY and given[name] != gone[name]:
            raise refused(f"{name} = {given[name]!r}")
    return {name: value for name, value in given.items() if name not in gone}


def recorded_options(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by the keys that they have in the identity of a result."""
    options = declared(cls)
    return {(name in options and options[name].option.recorded_as) or name: value for name, value in values.items()}


def changed_options(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the default of their option.

    Args:
        values: field name -> value, as from `config_to_dict`; names that are not fields are kept.
    """
    options = declared(cls)
    return {
        name: value
        for name, value in values.items()
        if name not in options or value != to_plain(options[name].field.default)
    }


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def unused_options(config: Any, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the non-default options that would have no effect: name -> why.

    Args:
        facts: fact that an option may need -> "" if it is true, else why not. Missing facts are ignored.
    """
    reasons: dict[str, str] = {}
    values = option_values(config)
    for name, (field, _, option, _) in declared(type(config)).items():
        why = next(filter(None, (facts.get(need) for need in option.needs)), "")
        if why and values[name] != field.default:
            reasons[name] = why
    return reasons


def require_effect(config: Any, facts: Mapping[str, str]) -> None:
    """Refuse options without effect on the requested work.

    Args:
        facts: as for `unused_options`.

    Raises:
        ConfigError: some options have no effect; all of them are named.
    """
    if reasons := unused_options(config, facts):
        raise ineffective(*map(flag_of, reasons), why="; ".join(dict.fromkeys(reasons.values())))


COMMAND_LINE = "command line"


def aliases(cls: type[Any]) -> dict[str, str]:
    """Return other name -> field of the options that have a second name, or had another one."""
    return {
        other.removeprefix("--").replace("-", "_"): name
        for name, declaration in declared(cls).items()
        for other in (declaration.option.also, declaration.option.formerly)
        if other
    }


def earlier_flags(options: Mapping[str, Declared]) -> dict[str, list[str]]:
    """Return flag of an earlier version -> the words that it stands for today."""
    flags: dict[str, list[str]] = {}
    for name, declaration in options.items():
        if declaration.option.formerly is not None:
            flags[declaration.option.formerly] = [flag_of(name)]
        if declaration.option.when_off is not None:
            flags[flag_of(f"no_{name}")] = [flag_of(name), declaration.option.when_off]
    return flags


def by_field(cls: type[Any], layer: Mapping[str, Any], *, where: str) -> dict[str, tuple[str, Any]]:
    """Return field -> its key in a mapping, and its value.

    A key is a field name (dashes allowed) or the name of its alias flag.

    Raises:
        ConfigError: a key is unknown, or two keys name one option.
    """
    options = declared(cls)
    also = aliases(cls)
    entries: dict[str, tuple[str, Any]] = {}
    for key, value in layer.items():
        name = key.replace("-", "_")
        name = name if name in options else also.get(name, "")
        if not name:
            raise unknown_name(f"Unknown key {key!r}.", key.replace("-", "_"), options, where=where)
        if name in entries:
            raise ConfigError(
                "An option is set twice.", where=where, why=f"{entries[name][0]} and {key} are one option: give one"
            )
        when_off = options[name].option.when_off
        if when_off is not None and isinstance(value, bool):
            value = options[name].field.default if value else when_off
        entries[name] = key, value
    return entries


def build_config(
    cls: type[ConfigT], *layers: Mapping[str, Any], where: str = "", flags: Mapping[str, Any] | None = None
) -> ConfigT:
    """Build a configuration dataclass from mappings; later ones win.

    Args:
        layers: mappings from field name (dashes allowed) to value, plain TOML types.
        where: the source named in errors, such as the file of a layer.
        flags: a last layer, given on the command line.

    Raises:
        ConfigError: a key is unknown, a field is missing, or a value has the wrong type or is out of range.
    """
    options = declared(cls)
    values: dict[str, Any] = {}
    for layer, place in (*((layer, where) for layer in layers), (flags or {}, COMMAND_LINE)):
        for name, (key, value) in by_field(cls, layer, where=place).items():
            values[name] = _coerce(value, options[name].hint, key=key, where=place)
    missing = [
        name
        for name, (field, *_) in options.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        examples = {name: options[name].option.such_as for name in missing}
        shown = [flag_of(name) if example else name for name, example in examples.items()]
        such_as = " ".join(f"{flag_of(name)} {example}" for name, example in examples.items() if example)
        raise ConfigError(
            f"{enumeration(shown)} {'is' if len(missing) == 1 else 'are'} missing.",
            where=where,
            why=f"such as {such_as}" if such_as else "",
        )
    try:
        return _assembled(cls, values)
    except ConfigError as error:
        error.where = error.where or where
        raise


def _assembled(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Return a configuration with these option values, each in the component that declares it."""
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        part = field.metadata.get("component")
        if part is not None:
            arguments[field.name] = _assembled(part, values)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    return cls(**arguments)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as plain JSON types (paths as strings, tuples as lists)."""
    return {name: to_plain(value) for name, value in option_values(config).items()}


def command_words(cls: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Return the flags that produce a configuration's values, in help order and without defaults.

    Args:
        values: field name -> value, as from `config_to_dict`; other keys are ignored.
    """
    words: list[str] = []
    for name, value in changed_options(cls, {name: values.get(name) for name in declared(cls)}).items():
        if value is None:
            continue
        flag = flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += [flag, str(item)]
    return words


def to_plain(value: Any) -> Any:
    """Return a value as plain JSON types: dataclasses and named tuples by their fields, paths as strings.

    A number that JSON lacks, such as NaN, becomes None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "_asdict"):
        return to_plain(value._asdict())
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


def json_text(value: Any, *, indent: int | None = 2, sort_keys: bool = False, default: Any = None) -> str:
    """Render a value, converted by `to_plain`, as strict JSON; the options are those of `json.dumps`."""
    return json.dumps(
        to_plain(value), indent=indent, sort_keys=sort_keys, default=default, ensure_ascii=False, allow_nan=False
    )


def kinds_of(hint: Any) -> tuple[list[Any], list[Any]]:
    """Return the allowed types of an option's type hint, `None` included, and its allowed literal words."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    kinds = list(typing.get_args(hint)) if is_union else [hint]
    words = [kind for kind in kinds if typing.get_origin(kind) is Literal]
    return [kind for kind in kinds if kind not in words], [word for kind in words for word in typing.get_args(kind)]


def _coerce(value: Any, hint: Any, *, key: str, where: str) -> Any:
    kinds, words = kinds_of(hint)
    if value in words or (value is None and type(None) in kinds):
        return value
    if Url in kinds:
        if isinstance(value, (str, Path)):
            return parse_location(value)
        raise _of_another_type("a path or a URL", value, key=key, where=where)
    others = [kind for kind in kinds if kind is not type(None)]
    if not others:
        shown = flag_of(key) if where == COMMAND_LINE else key
        raise unknown_name(f"{shown} cannot be {value!r}.", str(value), map(str, words), where=where)
    (hint,) = others
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(_coerce(item, arguments[0], key=key, where=where) for item in value)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _of_another_type("a table", value, key=key, where=where)
        return types.MappingProxyType(
            {str(name): _coerce(item, arguments[1], key=f"{key}.{name}", where=where) for name, item in value.items()}
        )
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build_config(typing.cast(type[Any], hint), value, where=f"{where} [{key}]".strip())
    if hint is Path and isinstance(value, (str, Path)):
        return local_folder(parse_location(value), what=key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if value.bit_length() <= _MOST_BITS else value
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    raise _of_another_type(getattr(hint, "__name__", hint), value, key=key, where=where)


def _of_another_type(wanted: Any, value: Any, *, key: str, where: str) -> ConfigError:
    return ConfigError(f"{key} must be {wanted}, not {type(value).__name__}.", where=where, why=f"got {value!r}")
