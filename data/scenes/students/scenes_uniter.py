"""`scenes-uniter`: a UNITER small enough to be pretrained on a CPU, over small crops of the boxes.

UNITER's modules, used otherwise in three places, because of its size and of the corpus. In the first layer text and
regions attend only to themselves, so that pretraining can align them before they are mixed: without it matching was
still at chance after 500 joint steps of 32. And a word piece that names an object by tag also receives that region's
state, in the manner of VL-BERT: UNITER knows people by tokens of their own and cannot tell which of the regions
"object 3" is. And heads also read whether text and region agree (`Agreement`).

Shapes: N sequences, L text tokens, R regions, H width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from advl_data.scenes.students.small import Agreement, place_of_tags, said_tokens, shares_of_tags
from advl_pipeline.datasets.records import Example
from advl_pipeline.students.bert_parts import run_layers
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput, UnimodalStates
from advl_pipeline.students.lookup import LOOKUP_TASKS, LookupHead
from advl_pipeline.students.region_student import RegionBatch, tagged_regions
from advl_pipeline.students.saved import builder
from advl_pipeline.students.uniter import ANSWER_TYPE, Uniter, UniterConfig

NUM_SEPARATE_LAYERS = 1


@dataclass(kw_only=True)
class TaggedRegionBatch(RegionBatch):
    """Adds `tags_NL` (int64): the region that each token refers to by tag, -1 for most."""

    tags_NL: torch.Tensor


class ScenesUniter(Uniter):
    """The student."""

    compile_refusal = Student.compile_refusal
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
        return TaggedRegionBatch(**vars(batch), tags_NL=tagged_regions(batch, examples))

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
            self.kinds(batch.token_mask_NL, batch.visual_mask_NR),
            num_text=num_text,
            grid=batch.grid,
            separate=True,
        )
        return x_NSH[:, :num_text], x_NSH[:, num_text:]

    def fuse(
        self, batch: Any, text_NLH: torch.Tensor, visual_NRH: torch.Tensor, *, hidden: bool, **how: bool
    ) -> StudentOutput:
        """Run the joint layers; unless the picture is hidden, tagged words hold their region's state."""
        assert isinstance(batch, TaggedRegionBatch)
        tags_NLR = shares_of_tags(batch.tags_NL, visual_NRH)
        tagged_NLH = text_NLH if hidden else text_NLH + tags_NLR @ visual_NRH
        output = super().fuse(batch, tagged_NLH, visual_NRH, hidden=hidden, **how)
        # With a given answer before it, what is said is the reason: the last of the parts.
        last_N1 = (batch.types_NL * batch.token_mask_NL).amax(1, keepdim=True)
        is_answer_NL = (batch.types_NL >= ANSWER_TYPE) & (batch.types_NL == last_N1)
        said_NL = said_tokens(is_answer_NL, batch.token_mask_NL)
        place_NR = place_of_tags(tags_NLR, hidden=hidden)
        pooled_NP = self.agreement(output.pooled_NP, text_NLH, said_NL, visual_NRH, place_NR)
        unimodal = UnimodalStates.from_batch(batch, text_NLH, visual_NRH, hidden=hidden)
        return dataclasses.replace(output, pooled_NP=pooled_NP, unimodal=unimodal)

    def encode_unimodal(self, batch: StudentBatch) -> StudentOutput:
        assert isinstance(batch, RegionBatch)
        text_NLH, regions_NRH = self.embed(batch, Perturbation())
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=regions_NRH,
            pooled_NP=self.model.pooler(text_NLH),
            image_state_NH=regions_NRH[:, 0] if batch.whole_first else None,
        )

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        if task in LOOKUP_TASKS:
            return LookupHead(self.hidden_size, self.word_table()[0].num_embeddings, num_classes)
        return super().build_head(task, num_classes)

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.model.embeddings.word_embeddings, self.tokenizer.mask_id


build = builder(ScenesUniter)
