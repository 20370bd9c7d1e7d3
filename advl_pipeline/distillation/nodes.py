"""What a batch's words and regions are compared as, found on the host where the batch is collated."""

from __future__ import annotations

import torch

from advl_pipeline.distillation.landmarks import unplaced_words
from advl_pipeline.distillation.signal import Nodes, WordAlignment, WordNodes


def seen_regions(region_mask_BS: torch.Tensor, shares_BSR: torch.Tensor | None) -> Nodes:
    """Return the regions that have a target and that the student sees; arguments as in `VisionSignal`."""
    return Nodes.of(region_mask_BS if shares_BSR is None else region_mask_BS & shares_BSR.any(2))


def compared_words(words: WordAlignment, word_mask_NW: torch.Tensor | None) -> WordNodes:
    """Return the words of which a teacher and the student have states.

    Args:
        word_mask_NW: bool, those of the teacher; None for all.
    """
    num_texts, num_words = words.prior_NW.shape
    bucket_NL = torch.where(words.word_of_token_NL >= 0, words.word_of_token_NL, num_words)
    has_token_NW = torch.zeros(num_texts, num_words + 1, dtype=torch.bool).scatter_(1, bucket_NL, True)[:, :num_words]
    meant_NW = words.word_mask_NW & has_token_NW & (words.prior_NW > 0)
    if word_mask_NW is not None:
        meant_NW = meant_NW & word_mask_NW
    return WordNodes(
        meant=Nodes.of(meant_NW),
        num_forms=len(torch.unique(words.form_NW[meant_NW])),
        unplaced=Nodes.of(unplaced_words(meant_NW, words)),
    )
