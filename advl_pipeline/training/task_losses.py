"""Task losses as the students' original code computes them. Pure functions.

Shapes: B examples, N sequences, C candidates, K classes.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def soft_target_bce(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return binary cross-entropy summed over classes, averaged over examples.

    VQA of UNITER, VILLA, LXMERT, VL-BERT, CLIP-ViL, METER, ViLT; SNLI-VE of UNITER and VILLA with one-hot scores.
    """
    return functional.binary_cross_entropy_with_logits(logits_BK, scores_BK) * logits_BK.shape[1]


def soft_target_kl(logits_BK: torch.Tensor, scores_BK: torch.Tensor) -> torch.Tensor:
    """Return KL(scores || softmax(logits)), averaged over examples: VisualBERT's VQA loss.

    Scores are used as they are, without normalising them to a distribution, as in the original.
    """
    return functional.kl_div(torch.log_softmax(logits_BK, dim=-1), scores_BK, reduction="batchmean")


def two_way_choice(two_way_N2: torch.Tensor, is_right_N: torch.Tensor) -> torch.Tensor:
    """Return the mean 2-way cross-entropy of every candidate on its own: VCR of UNITER and VILLA.

    Candidates do not compete; at inference the score of a candidate is `two_way_N2[:, 1]` alone.
    """
    return functional.cross_entropy(two_way_N2, is_right_N.long())


def sigmoid_choice(scores_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return the mean sigmoid cross-entropy over all candidates: VCR of VL-BERT.

    Candidates that an example lacks have the score -inf and do not count.
    """
    present_BC = scores_BC > -torch.inf
    is_right_BC = functional.one_hot(label_B, scores_BC.shape[1]).to(scores_BC.dtype)
    return functional.binary_cross_entropy_with_logits(scores_BC[present_BC], is_right_BC[present_BC])


def softmax_choice(scores_BC: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy over candidates or classes: VCR of VisualBERT, SNLI-VE of METER and CLIP-ViL."""
    return functional.cross_entropy(scores_BC, label_B)
