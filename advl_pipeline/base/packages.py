"""Python packages outside the light core: plug-ins, their data files, and extras that install missing packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import resources
from importlib.metadata import EntryPoint
from itertools import chain
from pathlib import Path
from typing import Any

from advl_pipeline.base.errors import Advice, ConfigError, advise, enumeration

OWN_DATA = "advl_data"
"""Import name of the folder `data/`."""

DATA_GROUP = "advl.data"
"""Entry points of packages with files in the layout of `data/`: cards, recipes, studies, student metadata."""


@cache
def entry_points(*, group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group in all installed packages, without loading them.

    Reading the metadata of all packages takes tens of milliseconds, so the result is cached per process.
    """
    return tuple(importlib.metadata.entry_points(group=group))


def load_plugin(point: EntryPoint, what: str) -> Any:
    """Load and return the object of another package's entry point.

    Args:
        what: the kind of object, such as "teacher".

    Raises:
        ConfigError: loading it fails, for any reason.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise plugin_error(point, what, error) from error


def plugin_error(point: EntryPoint, what: str, error: BaseException) -> ConfigError:
    """Return the error for a failing plug-in: its kind, package, cause, and how to remove it."""
    package = point.dist.name if point.dist else point.value.partition(":")[0].partition(".")[0]
    return ConfigError(
        f"The {what} {point.name!r} of the package {package} cannot be used.",
        where=f"entry point {point.group}: {point.name} = {point.value}",
        why=f"{type(error).__name__}: {error}",
        next_command=advise(["pip", "uninstall", package], note="or install what it needs"),
    )


@cache
def _data_homes() -> tuple[dict[Path, EntryPoint | None], tuple[ConfigError, ...]]:
    """Return the data folders, ours first, each with its plug-in; and the errors of plug-ins without a folder."""
    homes: dict[Path, EntryPoint | None] = {Path(str(resources.files(OWN_DATA))): None}
    broken = []
    for point in sorted(entry_points(group=DATA_GROUP), key=lambda point: point.value):
        try:
            homes[Path(str(resources.files(point.value)))] = point
        except (Exception, SystemExit) as error:
            broken.append(plugin_error(point, "data", error))
    return homes, tuple(broken)


def missing_data() -> str:
    """Return a note for unknown-name errors that lists plug-ins whose data cannot be found; "" if there are none."""
    return "".join(f"; {error.what} It is the {error.where}; {error.next_command}" for error in _data_homes()[1])


def read_data_file(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file in one of the data folders.

    Raises:
        ConfigError: a plug-in's file is damaged.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        point = next((point for home, point in _data_homes()[0].items() if path.is_relative_to(home)), None)
        if point is None:
            raise
        raise plugin_error(point, f"file {path.name} of the data", error) from error


def data_files(folder: str) -> dict[str, Path]:
    """Return the TOML files of a folder in `data/` and of the same folder in plug-ins: stem -> file."""
    files: dict[str, Path] = {}
    for home in _data_homes()[0]:
        for path in sorted((home / folder).glob("*.toml")):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def read_tables(name: str) -> dict[str, Any]:
    """Return the tables of a TOML file in `data/` and of undamaged plug-in files with the same name."""
    tables: dict[str, Any] = {}
    for path in (home / name for home in _data_homes()[0]):
        if path.is_file():
            # Names in a damaged file are reported as unknown when they are used.
            with suppress(ConfigError):
                tables = {**read_data_file(path), **tables}
    return tables


def read_data(name: str) -> str:
    """Return the text of a file in `data/`."""
    return resources.files(OWN_DATA).joinpath(name).read_text(encoding="utf-8")


def package_folder(module: str) -> Path | None:
    """Return the folder of an installed package, or None."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def installed_versions(distributions: Iterable[str], *, absent: str) -> dict[str, str]:
    """Return the version of each distribution, cached per process.

    Args:
        absent: replaces the version of a distribution that is not installed.
    """
    return {name: _installed_version(name) or absent for name in distributions}


@cache
def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_extra(*extras: str, note: str = "") -> Advice:
    """Return the command that installs the packages of extras.

    It names these packages and never this project, whose name on a package index may belong to anybody.
    """
    required = [line.partition(";") for line in importlib.metadata.requires(DISTRIBUTION) or ()]

    def packages_of(extra: str) -> list[str]:
        requirements: list[str] = []
        for wanted, _, condition in required:
            if re.search(rf"extra == ['\"]{extra}['\"]", condition):
                ours = re.fullmatch(rf"{DISTRIBUTION}\[(.*)\]", wanted.strip())
                requirements += (
                    chain.from_iterable(map(packages_of, ours[1].split(","))) if ours else [wanted.strip()]
                )
        return requirements

    return advise(["pip", "install", *chain.from_iterable(map(packages_of, extras))], note=note)


@contextmanager
def needs_extra(*extras: str, where: str = "") -> Iterator[None]:
    """Raise an error with the install command if an import in the block lacks a package of an extra.

    Args:
        extras: of this package.
        where: the option or file that requires it.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"This needs the extra {enumeration(extras)}, which is not installed.",
            where=where,
            why=str(error),
            next_command=install_extra(*extras),
        ) from None


DISTRIBUTION = "advl-pipeline"

EXTRA_OF = {
    "zarr": "zarr",
    **dict.fromkeys(
        "accelerate h5py huggingface_hub jinja2 loky markupsafe matplotlib orjson pandas PIL pyarrow scipy timm "
        "tokenizers torch torchvision transformers".split(),
        "train",
    ),
}
"""Modules that the base install, which reads caches, does not need -> the extra that installs them."""


def missing_extra(error: ModuleNotFoundError) -> ConfigError | None:
    """Return the error with the install command for a module of `EXTRA_OF`; None for any other module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return ConfigError(
        "This needs a package that is not installed.",
        where=f"Python package {module}",
        why="the bare package reads and verifies caches, and exports them to safetensors",
        next_command=install_extra(EXTRA_OF[module]),
    )
