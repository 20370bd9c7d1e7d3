"""`scenes-efficientnet`: the demo's student with eyes that were trained on photographs.

`scenes-small` sees a region by two layers over a crop of 12 x 12 pixels. They tell drawings apart, and photographs
hardly. Here the frozen EfficientNet-Lite0 of the package index reads each crop, as a frozen detector read the regions
of UNITER and LXMERT, and two layers over its pooled features are learned. Words start at random, as in
`scenes-small`. A vision teacher of the same weights has little to teach it.

Shapes: B pictures, R visual tokens (whole picture first), S crop side, F features, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import timm
import torch
from torch import nn

from advl_data.scenes.students.small import CropBatch, ScenesSmall, ScenesSmallConfig
from advl_pipeline.base.batch_norms import fold_batch_norms
from advl_pipeline.base.configuration import build_config, option
from advl_pipeline.students.bert_parts import initialise_bert
from advl_pipeline.students.frozen_states import FrozenStates, keeps_states, states_of
from advl_pipeline.students.saved import load_weights, saved_settings

NUM_FEATURES = 1280
"""Channels of the last layer of the tower, F."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesEfficientNetConfig(ScenesSmallConfig):
    """Architecture of `scenes-small`, with larger crops."""

    crop_size: int = option(96, help="Side S of the crops that the tower sees, in pixels.", minimum=32)


class ScenesEfficientNet(ScenesSmall):
    """Runs the small student over a frozen tower's features of the crops."""

    towers = ("efficientnet-lite0",)
    vision: Any
    _features: FrozenStates | None

    def __init__(self, name: str, config: ScenesEfficientNetConfig) -> None:
        super().__init__(name, config)
        width = config.hidden_size
        self.patch_encoder = nn.Sequential(
            nn.LayerNorm(NUM_FEATURES), nn.Linear(NUM_FEATURES, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        initialise_bert(self.patch_encoder)
        with torch.device("cpu"):  # Whether norms fold is seen by the values.
            network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
            self.vision = fold_batch_norms(network, torch.rand(1, 3, 64, 64))
        self.vision.to(memory_format=torch.channels_last)
        self.vision.requires_grad_(False)
        _forget(self)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def take_towers(self, networks: Sequence[nn.Module]) -> None:
        (network,) = networks
        state = network.state_dict()
        self.vision.load_state_dict({name: state[name] for name in self.vision.state_dict()})
        _forget(self)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.vision.eval()
        return self

    def seen(self, batch: CropBatch) -> torch.Tensor:
        """Return (B, R, F): the tower's features of the crops, 0 where a picture has no region."""

        def read(pixels_RP: torch.Tensor) -> torch.Tensor:
            side = self.config.crop_size
            pixels_R3SS = (
                pixels_RP.to(next(self.vision.parameters()).dtype).view(-1, side, side, 3).permute(0, 3, 1, 2)
            )
            normalised = (pixels_R3SS / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
            return cast(torch.Tensor, self.vision(normalised))

        visible_BR = batch.visible_BR
        if not keeps_states(self.vision, batch.features_BRF):
            seen_XF = read(batch.features_BRF[visible_BR])
        else:
            self._features = self._features or states_of(self.vision)
            of_pictures = zip(batch.features_BRF, visible_BR, strict=True)
            seen_XF = torch.cat(
                [self._features.of(read, crops_RP[is_there_R]) for crops_RP, is_there_R in of_pictures]
            )
        seen_BRF = seen_XF.new_zeros(*visible_BR.shape, seen_XF.shape[-1])
        seen_BRF[visible_BR] = seen_XF
        return seen_BRF


def _forget(student: ScenesEfficientNet, *_: object) -> None:
    """Drop the kept features, which are those of other weights."""
    student._features = None


def build(name: str, weights: Path | None, overrides: Mapping[str, Any]) -> ScenesEfficientNet:
    """Build the student, from a folder that `save_student` wrote or with random weights."""
    saved = saved_settings(weights, name) if weights else {}
    config = build_config(ScenesEfficientNetConfig, saved, overrides, where=str(weights or name))
    student = ScenesEfficientNet(name, config)
    if weights:
        load_weights(student, weights)
    return student
