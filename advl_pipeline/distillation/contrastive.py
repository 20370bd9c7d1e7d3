"""The contrastive part of the adapt step (docs/method.md): picture and text summaries of the downstream inputs.

Shapes: B examples, N sequences (all candidates of all examples), E width of the common space.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def image_text_contrast(
    image_BE: torch.Tensor,
    text_NE: torch.Tensor,
    pulled_BN: torch.Tensor,
    *,
    left_out_BN: torch.Tensor,
    temperature: torch.Tensor,
) -> torch.Tensor:
    """Symmetric InfoNCE with in-batch negatives, where several texts may belong to a picture.

    A picture is told which texts of the batch are its own, as a group: -log of their share of the softmax over all
    texts. Each group is told which picture of the batch is its own, by the summed likeness of its texts.

    Args:
        image_BE: picture summaries.
        pulled_BN: bool, the texts that belong to each picture, at least one.
        left_out_BN: bool, texts that are neither pulled to a picture nor pushed from it.
        temperature: scalar, positive.

    Returns:
        Scalar, the mean of the two directions.
    """
    # In bf16, likenesses over a small temperature would be rounded to steps larger than what tells texts apart.
    with torch.autocast(image_BE.device.type, enabled=False):
        image = functional.normalize(image_BE.float(), dim=-1)
        text = functional.normalize(text_NE.float(), dim=-1)
        logits_BN = (image @ text.T / temperature).masked_fill(left_out_BN, -torch.inf)
        own_B = logits_BN.masked_fill(~pulled_BN, -torch.inf).logsumexp(1)
        to_text = (logits_BN.logsumexp(1) - own_B).mean()
        # How well every picture (first axis) fits the texts of every example (second).
        groups_BB = logits_BN[:, None, :].masked_fill(~pulled_BN[None], -torch.inf).logsumexp(2)
        to_image = (groups_BB.logsumexp(0) - own_B).mean()
    return (to_text + to_image) / 2
