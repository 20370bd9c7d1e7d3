"""Teachers by name: the catalogue, the doors `hf:`, `timm:` and `random:`, and plug-ins.

A plug-in is an entry point of group `advl.teachers` whose object is called with `OpenOptions` and returns a
`Teacher`; one that is a `DescribedTeacher` is listed like ours (`docs/adding-a-teacher.md`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_pipeline.errors import ConfigError, advise, suggest_names
from advl_pipeline.packages import entry_points
from advl_pipeline.teachers.open_options import ComputeDtype, ImageTokenKind, OpenOptions
from advl_pipeline.teachers.teacher_cards import CATALOGUE, DOORS, DescribedTeacher, TeacherCard

if TYPE_CHECKING:
    from advl_pipeline.teachers.interface import Teacher

ENTRY_POINT_GROUP = "advl.teachers"


def open_teacher(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    image_tokens: ImageTokenKind = "boxes",
    grid_side: int | None = None,
    dtype: ComputeDtype = "fp32",
) -> Teacher:
    """Open a frozen teacher.

    Args:
        name: a name of the catalogue, `hf:ORG/MODEL[@REVISION]`, `timm:MODEL`, `random:NAME[@SEED]`, or a plug-in's.
        weights: a folder (transformers) or file of tensors (timm) to load instead of the known source.
        device: as torch names it, such as "cpu" or "cuda".
        image_tokens: token features of pictures: per box, per box from the grid, per grid cell, or none.
        grid_side: larger grids are averaged to so many rows and columns; None keeps them.
        dtype: what the network computes in; features come out as float32.

    Raises:
        ConfigError: an unknown name (the near ones are listed), device or model type.
        WeightsUnavailable: the weights are not at hand; says what to install or where to put them.
    """
    options = OpenOptions(
        name=name, weights=weights, device=device, image_tokens=image_tokens, grid_side=grid_side, dtype=dtype
    )
    return _open(name, options)


def plugin_entry_points() -> dict[str, EntryPoint]:
    """Return the installed plug-ins by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def known_names() -> list[str]:
    """Return every name of the catalogue and of installed plug-ins, in the order of listing."""
    return [*CATALOGUE, *sorted(plugin_entry_points())]


def _open(name: str, options: OpenOptions) -> Teacher:
    door, _, rest = name.partition(":")
    if rest and door == "random":
        inner, _, seed = rest.partition("@") if not rest.startswith("hf:") else (rest, "", "")
        if seed and not seed.isdigit():
            raise ConfigError(f"The seed of {name!r} is no number.", where="--teacher")
        return _open(inner, dataclasses.replace(options, random_seed=int(seed or 0)))
    if rest and door == "hf":
        from advl_pipeline.teachers.transformers_family import open_transformers

        return open_transformers(rest, options)
    if rest and door == "timm":
        from advl_pipeline.teachers.timm_family import open_timm

        return open_timm(rest, options, weights=options.weights)
    if rest and door == "pictures":
        from advl_pipeline.teachers.squares import open_squares

        return open_squares(rest)
    if name in CATALOGUE:
        card = CATALOGUE[name]
        if card.source == "timm":
            from advl_pipeline.teachers.timm_family import open_timm

            return open_timm(card.architecture, options, weights=options.weights)
        from advl_pipeline.teachers.transformers_family import open_transformers

        return open_transformers(card.source_id, options, model_type=card.model_type)
    plugins = plugin_entry_points()
    if name in plugins:
        return _open_plugin(plugins[name], options)
    raise _unknown(name)


def require_teacher(name: str) -> None:
    """Refuse a name that opens no teacher, before anything is loaded; what stands behind `hf:` is not looked up.

    Raises:
        ConfigError: as said.
    """
    door, _, rest = name.partition(":")
    if rest and door == "random":
        require_teacher(rest if rest.startswith("hf:") else rest.partition("@")[0])
    elif not (rest and door in ("hf", "timm", "pictures")) and name not in known_names():
        raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"There is no teacher {name!r}.",
        where="--teacher",
        why=suggest_names(name, [*known_names(), *DOORS]),
        next_command=advise(["advl", "teachers", "list"]),
    )


def load_plugin(point: EntryPoint) -> Callable[[OpenOptions], Teacher]:
    """Return what opens the teacher of a plug-in.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        opener: Callable[[OpenOptions], Teacher] = point.load()
    except ImportError as error:
        raise ConfigError(
            f"The plug-in of the teacher {point.name!r} cannot be imported.",
            where=f"entry point {point.value}",
            why=str(error),
            next_command=advise(["advl", "teachers", "check", point.name], note="once what it needs is installed"),
        ) from error
    return opener


def described(name: str) -> DescribedTeacher | None:
    """Return the teacher of a plug-in that says what it is; None for any other name.

    Raises:
        ConfigError: as `load_plugin`.
    """
    plugins = plugin_entry_points()
    plugin = load_plugin(plugins[name]) if name in plugins else None
    return plugin if isinstance(plugin, DescribedTeacher) else None


def card_of(name: str) -> TeacherCard | None:
    """Return the card of a name of the catalogue or of a plug-in's; None where there is none.

    Raises:
        ConfigError: as `load_plugin`.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    plugin = described(name)
    return plugin.card if plugin else None


def _open_plugin(point: EntryPoint, options: OpenOptions) -> Teacher:
    """Open a plug-in, and see that its random control is another teacher."""
    opener = load_plugin(point)
    teacher: Teacher = opener(options)
    if options.random_seed is None:
        return teacher
    import torch

    try:
        # Building a network draws random numbers, which what comes after must not notice.
        with torch.random.fork_rng(devices=[]):
            usual: Teacher = opener(dataclasses.replace(options, random_seed=None))
    except Exception:
        return teacher  # What it is otherwise is not at hand, for reasons of its own.
    if _numbers_of(usual) == _numbers_of(teacher):
        raise ConfigError(
            f"The teacher {options.name!r} is {point.name!r} itself.",
            where=f"entry point {point.value}",
            why="its plug-in does not heed `random_seed` of the options that it is opened with",
            next_command="leave out the control, or make the plug-in heed it (docs/adding-a-teacher.md)",
        )
    return teacher


def _numbers_of(teacher: Teacher) -> list[dict[str, Any]]:
    """Return everything that changes a teacher's numbers."""
    return [tower.describe() for tower in (teacher.image, teacher.text) if tower is not None]
