"""`scenes-vilt`: a ViLT small enough to be pretrained on a CPU, over pictures squeezed to a small square.

ViLT's modules as they are, with one thing added: a word piece that names an object by tag also receives the mean
embedding of the patches under that object's box. ViLT itself sees no boxes and has no way to tell what "object 3" is.

Shapes: N sequences, L text tokens, R visual tokens (class token, then patches), H width.
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
from advl_pipeline.students.interface import Student
from advl_pipeline.students.pixel_student import PixelBatch
from advl_pipeline.students.vilt import Vilt


@dataclass(kw_only=True)
class TaggedPixelBatch(PixelBatch):
    """Adds `tags_NLR` (float32): of each token's tagged box, the share on each visual token; 0 without a tag."""

    tags_NLR: torch.Tensor


class ScenesVilt(Vilt):
    """The student."""

    compile_refusal = Student.compile_refusal
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "scenes-vilt": {
            "hidden_size": 96,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 192,
            "image_size": 112,
            "patch_size": 16,
            "tokenizer": "minilm-l6",
            "max_positions": 64,
            "max_text_length": 64,
            "overlong": "error",
        },
    }

    def collate(self, examples: Sequence[Example]) -> TaggedPixelBatch:
        batch = super().collate(examples)
        tags_NLR = torch.zeros(*batch.token_ids_NL.shape, self.num_visual)
        row = 0
        for example in examples:
            shares = self.box_shares(example.image)
            for candidate in example.candidates:
                starts, ends = batch.char_spans_NL2[row].unbind(-1)
                for tag in candidate.tags:
                    tags_NLR[row, (starts >= tag.start) & (ends <= tag.end) & (ends > starts)] = shares[tag.box]
                row += 1
        values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
        return TaggedPixelBatch(**values, tags_NLR=tags_NLR)

    def embed(self, batch: PixelBatch, *, mask_visual: bool) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(batch, TaggedPixelBatch)
        text_NLH, image_NRH = super().embed(batch, mask_visual=mask_visual)
        return (text_NLH if mask_visual else text_NLH + batch.tags_NLR @ image_NRH), image_NRH

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.model.embeddings.text_embeddings.word_embeddings, self.tokenizer.mask_id


build = builder(ScenesVilt)
