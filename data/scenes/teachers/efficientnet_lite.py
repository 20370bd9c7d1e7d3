"""EfficientNet-Lite weights in the naming of lukemelas/EfficientNet-PyTorch, as networks of timm.

They map one to one onto `tf_efficientnet_lite*`: the same padding, the same epsilon of the batch norms. The
variants without `tf_` pad otherwise and give other logits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

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


def is_lukemelas_state(state: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether tensors are named as in lukemelas/EfficientNet-PyTorch."""
    return "_conv_stem.weight" in state


def timm_state(state: Mapping[str, torch.Tensor], blocks_per_stage: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Rename tensors for timm.

    Args:
        state: tensors in the lukemelas naming, whose blocks are numbered through.
        blocks_per_stage: how many blocks each stage of the timm network has, in order.

    Raises:
        KeyError: a name that no EfficientNet-Lite has.
    """
    places = [(stage, block) for stage, count in enumerate(blocks_per_stage) for block in range(count)]
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
