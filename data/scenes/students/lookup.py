"""Classification heads that look up the subject of a text in the picture: "Where is the thing that purrs?"

A text without tags does not name its region. Small students do not learn to find it from some hundred labels, even
though pretraining aligned their words and regions. So the head of VQA's answers and of SNLI-VE's classes finds the
region by similarity below the fusion, and reads its position and the certainty of the match. Rare words identify the
thing: words are weighted by inverse frequency, as in the sentence vectors of Arora et al. 2017 (SIF). Frequent words
express the question: "where in the picture is", "is there". A teacher that aligns words with regions thus improves
such a head without labels.
Shapes: N sequences, L text tokens, R visual tokens, H width, V word pieces, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.students.interface import OutputHead, StudentOutput

LOOKUP_TASKS = frozenset({"answers", "classes"})
"""Tasks with these heads; multiple choice reads the agreement of candidates with their tagged boxes (`Agreement`)."""

RARE = 0.003
"""Share of texts at which a word has half the weight of an unseen word."""

TEMPERATURE = 0.1

SIDE_WIDTH = 0.08
"""Distance from the middle, as a share of the picture's side, from which a thing is clearly at one side."""

NUM_EVIDENCE = 10


@dataclass(kw_only=True)
class LookupOutput(StudentOutput):
    """Output with the states of text and picture before their fusion, and the tokens of the text.

    `place_NR4` contains the positions of visual tokens, as `StudentBatch.places_BR4`; all NaN if the picture is
    hidden.
    """

    token_ids_NL: torch.Tensor
    token_mask_NL: torch.Tensor
    lower_text_NLH: torch.Tensor
    lower_visual_NRH: torch.Tensor
    place_NR4: torch.Tensor


class LookupHead(OutputHead[LookupOutput]):
    """Head over the pooled state, the question, and the position, side, similarity and certainty of the match."""

    token_share_V: torch.Tensor

    def __init__(self, width: int, num_tokens: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("token_share_V", torch.zeros(num_tokens))
        self.layers = nn.Sequential(
            nn.Linear(2 * width + NUM_EVIDENCE, 2 * width),
            nn.GELU(),
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, num_classes),
        )

    def read_texts(self, texts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Compute each token's share of texts from batches of token ids and masks (N, L)."""
        count_V, num_texts = torch.zeros_like(self.token_share_V), 0
        for token_ids_NL, token_mask_NL in texts:
            held_NV = torch.zeros(len(token_ids_NL), len(count_V), dtype=torch.uint8)
            held_NV.scatter_reduce_(1, token_ids_NL, token_mask_NL.to(torch.uint8), "amax")
            count_V += held_NV.sum(0)
            num_texts += len(token_ids_NL)
        self.token_share_V.copy_(count_V / max(1, num_texts))

    def forward(self, output: LookupOutput) -> torch.Tensor:
        """Return (N, K)."""
        share_NL = self.token_share_V[output.token_ids_NL]
        rare_NL = RARE / (RARE + share_NL) * output.token_mask_NL
        frequent_NL = share_NL / (RARE + share_NL) * output.token_mask_NL
        text_NLH = functional.normalize(output.lower_text_NLH, dim=-1)
        said_NH = functional.normalize(torch.einsum("nl,nlh->nh", rare_NL, text_NLH), dim=-1)
        similarity_NR = torch.einsum("nh,nrh->nr", said_NH, functional.normalize(output.lower_visual_NRH, dim=-1))
        is_place_NR = ~output.place_NR4.isnan().any(-1)
        share_NR = found_shares(similarity_NR, is_place_NR)
        place_N4 = torch.einsum("nr,nrp->np", share_NR, output.place_NR4.nan_to_num(0.5) - 0.5)
        offset_N2 = (place_N4[:, :2] + place_N4[:, 2:]) / 2
        side_N4 = (torch.cat([-offset_N2, offset_N2], dim=1) / SIDE_WIDTH).softmax(1)
        similarity_N1, clear_N1 = (share_NR * similarity_NR).sum(1, keepdim=True), (share_NR**2).sum(1, keepdim=True)
        # Scaled to the magnitude of layer-normalised states.
        evidence_NE = torch.cat([4 * place_N4, 2 * side_N4, 5 * similarity_N1, clear_N1], dim=1)
        total_N1 = frequent_NL.sum(1, keepdim=True).clamp(min=1e-6)
        asked_NH = torch.einsum("nl,nlh->nh", frequent_NL, output.lower_text_NLH) / total_N1
        logits: torch.Tensor = self.layers(torch.cat([output.pooled_NP, asked_NH, evidence_NE], dim=-1))
        return logits


def found_shares(similarity_NR: torch.Tensor, is_place_NR: torch.Tensor) -> torch.Tensor:
    """Return (N, R): each visual token's share of the match; sums to 1, or to 0 if no token has a position."""
    logits_NR = (similarity_NR / TEMPERATURE).masked_fill(~is_place_NR, torch.finfo(similarity_NR.dtype).min)
    return logits_NR.softmax(1) * is_place_NR
