"""`scenes-vilt`: a ViLT small enough for pretraining on a CPU, over pictures resized to a small square.

It differs from ViLT in four places because of its size and of the corpus. Four convolutions embed the patches instead
of one linear map, which learns little from so few pictures (Xiao et al. 2021, "Early convolutions help transformers
see better"). In the first layer text and patches only attend to themselves, so that pretraining can align them before
the fusion, and a picture passes it once for all candidates. A word piece that names an object by tag also receives
the mean state of the patches under that object's box: ViLT receives no boxes and cannot resolve "object 3". And
heads also read the agreement of text and patches (`Agreement`).

Shapes: N sequences, L text tokens, R visual tokens (class token, then patches), H width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from advl_data.scenes.config import Pretraining
from advl_data.scenes.students.small import Agreement, AgreementStream, said_tokens
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.geometry import pooling
from advl_pipeline.datasets.records import Example, ImageUnit
from advl_pipeline.students.bert_parts import compute_dtype, padding_bias
from advl_pipeline.students.interface import Perturbation
from advl_pipeline.students.pixel_student import PixelBatch, PixelStudentConfig
from advl_pipeline.students.region_student import tags_in
from advl_pipeline.students.saved import builder
from advl_pipeline.students.vilt import Vilt

NUM_SEPARATE_LAYERS = 1


@dataclass(kw_only=True)
class TaggedPixelBatch(PixelBatch):
    """Batch with `tags_NLR` (float32): each tagged box's share on each visual token; 0 for tokens without a tag.

    `said_NL` (bool) marks the tokens of the answer, or of the complete text without an answer.
    """

    tags_NLR: torch.Tensor
    said_NL: torch.Tensor


class PatchStem(nn.Sequential):
    """Convolutions that halve the picture four times: (B, 3, S, S) -> (B, H, S / 16, S / 16).

    With kernel 3 and stride 2, outputs are shifted by half a position to the left or right, depending on the padding
    side. The last one is padded on the other side, so that a token is centred on its patch to half a pixel.
    """

    PATCH_SIZE = 16

    def __init__(self, width: int) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((3, width // 4, width // 2, width)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        super().__init__(*layers, nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))


class ScenesVilt(AgreementStream, Vilt):
    """A small ViLT that compares a statement on a tagged box with the patches under it."""

    # It receives no boxes and has to learn the positions of things.
    pretraining = Pretraining(warmup_steps=1200, joint_steps=300, learning_rate=3e-3, move_pictures=0.25)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "scenes-vilt": {
            "hidden_size": 96,
            "num_layers": 3,
            "num_heads": 4,
            "intermediate_size": 192,
            "image_size": 112,
            "patch_size": PatchStem.PATCH_SIZE,
            "tokenizer": "minilm-l6",
            "max_positions": 64,
            "max_text_length": 64,
            "overlong": "error",
        },
    }

    def collate(self, examples: Sequence[Example]) -> TaggedPixelBatch:
        batch = super().collate(examples)
        tags_NLR = torch.zeros(*batch.token_ids_NL.shape, self.num_visual)
        shares = [self._box_shares(example.image) for example in examples]
        for row, tokens_L, box in tags_in(batch, examples):
            tags_NLR[row, tokens_L] = shares[batch.example_N[row]][box]
        context_N = torch.tensor(
            [candidate.context_length for example in examples for candidate in example.candidates]
        )
        starts_NL, ends_NL = batch.char_spans_NL2.unbind(-1)
        said_NL = said_tokens((starts_NL >= context_N[:, None]) & (ends_NL > starts_NL), batch.token_mask_NL)
        return TaggedPixelBatch(**vars(batch), tags_NLR=tags_NLR, said_NL=said_NL)

    @property
    def fusion_layers(self) -> Sequence[Any]:
        return super().fusion_layers[NUM_SEPARATE_LAYERS:]

    def __init__(self, name: str, config: PixelStudentConfig) -> None:
        super().__init__(name, config)
        if config.patch_size != PatchStem.PATCH_SIZE or config.image_size % PatchStem.PATCH_SIZE:
            raise ConfigError(
                f"{name} reads pictures of whole patches of {PatchStem.PATCH_SIZE} pixels.",
                why=f"asked for patches of {config.patch_size} in pictures of {config.image_size}",
            )
        self.model.embeddings.patch_embeddings = PatchStem(config.hidden_size)
        self.agreement = Agreement(config.hidden_size)

    def embed(
        self, batch: PixelBatch, delta: Perturbation, *, hidden: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states below the fusion."""
        inputs = (batch.token_ids_NL, batch.token_mask_NL, batch.types_NL)
        text_NLH = self.once("text", inputs, lambda: self._lower_text(batch))
        image_BRH = self.once("picture", (batch.pixels_B3SS,), lambda: self.per_picture(batch, self._lower_picture))
        return text_NLH, batch.per_sequence(image_BRH)

    def _box_shares(self, unit: ImageUnit) -> torch.Tensor:
        """Return (boxes, R): each box's share on each visual token of a picture; 0 on class tokens."""
        edges = np.array([unit.width, unit.height] * 2, np.float32)
        return torch.from_numpy(pooling(unit.boxes_R4 / edges, self.token_places)[0])

    def _lower_text(self, batch: PixelBatch) -> torch.Tensor:
        text_NLH = self.embed_text(batch.token_ids_NL, batch.types_NL)
        bias = padding_bias(batch.token_mask_NL, compute_dtype(text_NLH))
        for layer in super().fusion_layers[:NUM_SEPARATE_LAYERS]:
            text_NLH = layer(text_NLH, bias)[0]
        return text_NLH

    def _lower_picture(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        image_BRH = self.embed_pixels(pixels_B3SS)
        for layer in super().fusion_layers[:NUM_SEPARATE_LAYERS]:
            image_BRH = layer(image_BRH, None)[0]
        return image_BRH

    def spoken_of(self, batch: TaggedPixelBatch, visual_NRH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return batch.tags_NLR, batch.said_NL

    def word_table(self) -> tuple[nn.Embedding, int]:
        return self.model.embeddings.text_embeddings.word_embeddings, self.tokenizer.mask_id


build = builder(ScenesVilt)
