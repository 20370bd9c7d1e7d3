"""`scenes-efficientnet`: the demo's student with a vision tower trained on photographs.

`scenes-small` reads a region with two layers over a crop of 12 x 12 pixels. They distinguish drawings, but hardly
photographs. Here the frozen EfficientNet-Lite0 from the package index encodes each crop, like the frozen detector of
UNITER and LXMERT, and two layers over its pooled features are trained. Word vectors start at random, as in
`scenes-small`. A vision teacher with the same weights has little to teach it.

Shapes: B pictures, R visual tokens (full picture first), S crop side, F features, H width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from advl_data.scenes.students.small import CropBatch, ScenesSmall, ScenesSmallConfig
from advl_pipeline.base.configuration import option
from advl_pipeline.students.bert_parts import initialise_bert
from advl_pipeline.students.frozen_towers import TowerStudent, efficientnet_lite0
from advl_pipeline.students.saved import builder

NUM_FEATURES = 1280
"""Channels of the last layer of the tower, F."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesEfficientNetConfig(ScenesSmallConfig):
    """Architecture of `scenes-small`, with larger crops."""

    crop_size: int = option(96, help="Side S of the crops that the tower sees, in pixels.", minimum=32)


class ScenesEfficientNet(TowerStudent, ScenesSmall):
    """The small student over a frozen tower's features of the crops."""

    towers, tower_parts = ("efficientnet-lite0",), ("vision",)
    config_class: ClassVar[type[ScenesSmallConfig]] = ScenesEfficientNetConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"scenes-efficientnet": {}}
    vision: Any

    def __init__(self, name: str, config: ScenesEfficientNetConfig) -> None:
        super().__init__(name, config)
        width = config.hidden_size
        self.patch_encoder = nn.Sequential(
            nn.LayerNorm(NUM_FEATURES), nn.Linear(NUM_FEATURES, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        initialise_bert(self.patch_encoder)
        self.vision = efficientnet_lite0(num_classes=0)
        self.hold_towers()

    def seen(self, batch: CropBatch) -> torch.Tensor:
        """Return (B, R, F): the tower's features of the crops, 0 for missing regions."""

        def read(pixels_RP: torch.Tensor) -> torch.Tensor:
            side = self.config.crop_size
            pixels_R3SS = (
                pixels_RP.to(next(self.vision.parameters()).dtype).view(-1, side, side, 3).permute(0, 3, 1, 2)
            )
            normalised = (pixels_R3SS / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
            return cast(torch.Tensor, self.vision(normalised))

        visible_BR = batch.visible_BR
        if self.keeps_states("vision", batch.features_BRF):
            shown = [crops_RP[is_R] for crops_RP, is_R in zip(batch.features_BRF, visible_BR, strict=True)]
            seen_XF = torch.cat([self.kept("vision", read, crops_RP) for crops_RP in shown])
        else:
            seen_XF = read(batch.features_BRF[visible_BR])
        seen_BRF = seen_XF.new_zeros(*visible_BR.shape, seen_XF.shape[-1])
        seen_BRF[visible_BR] = seen_XF
        return seen_BRF


build = builder(ScenesEfficientNet)
