"""What a candidate says against what it speaks of, beside its likelihood: a score that is no pure likelihood.

docs/method.md: s_c = mean_t log p(w_t) + cos(h_region, mean h_words(c)) / tau, with states of one modality each. The
likelihood of a chat model does not read the layer in which words and regions are aligned; the heads of the small
encoders do, by the product of the two states, as those of two-tower models. Our reading; all methods have the same.
Shapes: N sequences, L text tokens, R picture tokens, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from advl_pipeline.datasets.records import Candidate
from advl_pipeline.datasets.words import is_function_word, word_spans


def agreement(
    text_NLH: torch.Tensor, said_NL: torch.Tensor, visual_NRH: torch.Tensor, place_NR: torch.Tensor
) -> torch.Tensor:
    """Return (N,) cosines of the mean state of what is said and that of what it is said of; 0 without either.

    Args:
        said_NL: bool, the tokens that say something.
        place_NR: float, shares of the picture's tokens in what the text speaks of.
    """
    share_NL = said_NL.float() / said_NL.sum(1, keepdim=True).clamp(min=1)
    said_NH = torch.einsum("nl,nlh->nh", share_NL, text_NLH.float())
    shown_NH = torch.einsum("nr,nrh->nh", place_NR.float(), visual_NRH.float())
    return functional.cosine_similarity(said_NH, shown_NH, dim=-1)


def said_tokens(candidates: Sequence[Candidate], char_spans_NL2: torch.Tensor) -> torch.Tensor:
    """Return (N, L) bool: the tokens of each answer's words with a meaning, of all its words where none has one."""
    said = torch.zeros(char_spans_NL2.shape[:2], dtype=torch.bool)
    start_NL, end_NL = char_spans_NL2.unbind(2)
    for row, candidate in enumerate(candidates):
        words = [span for span in word_spans(candidate.text) if span[0] >= candidate.answer_start]
        meant = [span for span in words if not is_function_word(candidate.text[slice(*span)].lower())]
        for first, last in meant or words:
            said[row] |= (start_NL[row] < last) & (end_NL[row] > first)
    return said
