"""Heads that read how well text and picture match before their fusion, beside the fused state.

Fusion layers with random weights learn a few hundred labels by heart. Two linear maps of pooled states into a common
space, as in two-tower models, learn from as few labels which texts fit which pictures. A choice is scored by the
cosine of the two; classes and open answers are read off the pooled states and the product of the maps. What the fused
state says starts at zero and is added: to choices with a small weight, so that it learns later than the maps; to
answers as it is, because it alone knows what lies where.

Shapes: N sequences, L text tokens, R visual tokens, H width, P width of the fused pooled state, T and V widths of the
pooled states of text and picture, M width of the common space, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.students.bert_parts import norm_first_head
from advl_pipeline.students.interface import OutputHead, Perturbation, StudentOutput
from advl_pipeline.students.text_student import SingleStream

COMMON_SIZE: Final = 256
"""Width M."""

FIRST_SCALE: Final = 10.0
"""First factor of the cosine, which is trained."""

FUSED_WEIGHT: Final = 0.03
"""Weight of the fused state in the score of a choice."""

DROPOUT: Final = 0.3
"""Dropout of the layers that read answers off the pooled states."""


@dataclass(kw_only=True)
class MatchOutput(StudentOutput):
    """Output with the pooled states of text and picture before their fusion; `shown_NV` is 0 for a hidden picture."""

    said_NT: torch.Tensor
    shown_NV: torch.Tensor


class MatchStream(SingleStream):
    """A single stream whose heads also read pooled states of text and picture before their fusion."""

    @abstractmethod
    def embed(
        self, batch: Any, delta: Perturbation, *, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the embeddings of `SingleStream.embed`, and the pooled states of text (N, T) and picture (N, V)."""

    def fuse(
        self,
        batch: Any,
        text_NLH: torch.Tensor,
        visual_NRH: torch.Tensor,
        *pooled: torch.Tensor,
        hidden: bool,
        **how: bool,
    ) -> StudentOutput:
        output = super().fuse(batch, text_NLH, visual_NRH, hidden=hidden, **how)
        said_NT, shown_NV = pooled
        return MatchOutput(
            **vars(output), said_NT=said_NT, shown_NV=torch.zeros_like(shown_NV) if hidden else shown_NV
        )


class MatchHead(OutputHead):
    """Head over the match of pooled states of text and picture, and over the fused state."""

    def __init__(self, *, text_size: int, picture_size: int, pooled_size: int, num_classes: int) -> None:
        super().__init__()
        self.text_norm, self.picture_norm = nn.LayerNorm(text_size), nn.LayerNorm(picture_size)
        self.text_map = nn.Linear(text_size, COMMON_SIZE)
        self.picture_map = nn.Linear(picture_size, COMMON_SIZE)
        *fused, last = norm_first_head(pooled_size, num_classes, hidden=2 * pooled_size)
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.fused = nn.Sequential(*fused, last)
        self.matched = None
        if num_classes == 1:
            self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
        else:
            num_read = text_size + picture_size + COMMON_SIZE
            *layers, last = norm_first_head(num_read, num_classes, hidden=2 * COMMON_SIZE)
            self.matched = nn.Sequential(nn.Dropout(DROPOUT), *layers, nn.Dropout(DROPOUT), last)

    def forward(self, output: StudentOutput) -> torch.Tensor:
        """Return (N, K)."""
        assert isinstance(output, MatchOutput)
        said_NT, shown_NV = self.text_norm(output.said_NT), self.picture_norm(output.shown_NV)
        match_NM = functional.normalize(self.text_map(said_NT), dim=-1)
        match_NM = match_NM * functional.normalize(self.picture_map(shown_NV), dim=-1)
        fused_NK: torch.Tensor = self.fused(output.pooled_NP)
        if self.matched is None:
            return self.log_scale.exp() * match_NM.sum(1, keepdim=True) + FUSED_WEIGHT * fused_NK
        # Scaled to the magnitude of a layer-normalised state.
        read = [said_NT, shown_NV, COMMON_SIZE * match_NM]
        matched_NK: torch.Tensor = self.matched(torch.cat(read, dim=-1))
        return matched_NK + fused_NK
