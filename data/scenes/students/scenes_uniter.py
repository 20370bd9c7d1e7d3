"""`scenes-uniter`: a UNITER small enough for pretraining on a CPU, over small crops of the boxes.

It differs from UNITER in three places because of its size and of the corpus. In the first layer text and regions
only attend to themselves, so that pretraining can align them before the fusion: without it matching was still at
chance after 500 joint steps of 32. A word piece that names an object by tag also receives that region's state, as in
VL-BERT: UNITER has special tokens for people and cannot resolve "object 3" to a region. And heads also read the
agreement of text and region (`Agreement`).

Shapes: N sequences, L text tokens, R regions, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from advl_data.scenes.students.small import Agreement, AgreementStream, said_tokens, shares_of_tags
from advl_pipeline.students.bert_parts import run_layers
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.region_student import RegionBatch
from advl_pipeline.students.saved import builder
from advl_pipeline.students.uniter import ANSWER_TYPE, Uniter, UniterConfig

NUM_SEPARATE_LAYERS = 1


class ScenesUniter(AgreementStream, Uniter):
    """A small UNITER that compares a statement on a tagged region with the region."""

    reads_tags = True
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

    @property
    def fusion_layers(self) -> Sequence[nn.Module]:
        return super().fusion_layers[NUM_SEPARATE_LAYERS:]

    def __init__(self, name: str, config: UniterConfig) -> None:
        super().__init__(name, config)
        self.agreement = Agreement(config.hidden_size)

    def embed(
        self, batch: RegionBatch, delta: Perturbation, *, hidden: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states below the fusion."""
        text_NLH, regions_NRH = super().embed(batch, delta)
        num_text = text_NLH.shape[1]
        x_NSH, _ = run_layers(
            super().fusion_layers[:NUM_SEPARATE_LAYERS],
            torch.cat([text_NLH, regions_NRH], dim=1),
            self.kinds(batch),
            num_text=num_text,
            grid=batch.grid,
            separate=True,
        )
        return x_NSH[:, :num_text], x_NSH[:, num_text:]

    def spoken_of(self, batch: RegionBatch, visual_NRH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert batch.tags_NL is not None
        # For rationales the statement is the last part, after the given answer.
        last_N1 = (batch.types_NL * batch.token_mask_NL).amax(1, keepdim=True)
        is_answer_NL = (batch.types_NL >= ANSWER_TYPE) & (batch.types_NL == last_N1)
        return shares_of_tags(batch.tags_NL, visual_NRH), said_tokens(is_answer_NL, batch.token_mask_NL)

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.model.embeddings.word_embeddings, self.tokenizer.mask_id


build = builder(ScenesUniter)
