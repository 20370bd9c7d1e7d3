"""`scenes-uniter`: a UNITER small enough to be pretrained on a CPU, over small crops of the boxes.

UNITER's modules as they are, with one thing added: a word piece that names an object by tag also receives that
region's embedding, in the manner of VL-BERT. UNITER itself knows people by tokens of their own and has no way to tell
which of the regions "object 3" is.

Shapes: N sequences, L text tokens, R regions, H width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from advl_pipeline.datasets.records import Example
from advl_pipeline.students.building import builder
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.region_student import RegionBatch, tagged_regions
from advl_pipeline.students.uniter import Uniter


@dataclass(kw_only=True)
class TaggedRegionBatch(RegionBatch):
    """Adds `tags_NL` (int64): the region that each token refers to by tag, -1 for most."""

    tags_NL: torch.Tensor


class ScenesUniter(Uniter):
    """The student."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "scenes-uniter": {
            "hidden_size": 96,
            "num_layers": 3,
            "num_heads": 4,
            "intermediate_size": 192,
            "feature_size": 512,
            "tokenizer": "minilm-l6",
            "vocab_size": 30522,
            "max_positions": 64,
            "max_text_length": 64,
        },
    }

    def collate(self, examples: Sequence[Example]) -> TaggedRegionBatch:
        batch = super().collate(examples)
        values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
        return TaggedRegionBatch(**values, tags_NL=tagged_regions(batch, examples))

    def embed(
        self, batch: RegionBatch, delta: Perturbation, *, mask_visual: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(batch, TaggedRegionBatch)
        text_NLH, regions_NRH = super().embed(batch, delta, mask_visual=mask_visual)
        if mask_visual:
            return text_NLH, regions_NRH
        index_NLH = batch.tags_NL.clamp(min=0)[..., None].expand(-1, -1, regions_NRH.shape[-1])
        return text_NLH + regions_NRH.gather(1, index_NLH) * (batch.tags_NL >= 0)[..., None], regions_NRH

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.model.embeddings.word_embeddings, self.tokenizer.mask_id


build = builder(ScenesUniter)
