"""The contrastive part of the adapt step (docs/method.md): picture and text summaries of the downstream inputs.

Shapes: B examples, N sequences (all candidates of all examples), E width of the common space.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def image_text_contrast(
    image_BE: torch.Tensor,
    text_NE: torch.Tensor,
    right_B: torch.Tensor,
    *,
    same_image_BN: torch.Tensor,
    temperature: torch.Tensor,
) -> torch.Tensor:
    """Symmetric InfoNCE with in-batch negatives and the wrong candidates as hard negatives.

    A picture is pulled to its right candidate among all texts of the batch, its own wrong candidates included; the
    right candidates are pulled to their pictures among all pictures. Texts of another example on the same picture
    are not negatives of it.

    Args:
        image_BE: picture summaries.
        text_NE: text summaries of every sequence.
        right_B: int64, the sequence of each example's right candidate.
        same_image_BN: bool, sequence n belongs to another example that shows the picture of example b.
        temperature: scalar, positive.

    Returns:
        Scalar, the mean of the two directions.
    """
    # In bf16, likenesses over a small temperature would be rounded to steps larger than what tells candidates apart.
    with torch.autocast(image_BE.device.type, enabled=False):
        image = functional.normalize(image_BE.float(), dim=-1)
        text = functional.normalize(text_NE.float(), dim=-1)
        logits_BN = (image @ text.T / temperature).masked_fill(same_image_BN, -torch.inf)
    to_text = functional.cross_entropy(logits_BN, right_B)
    logits_BB = logits_BN[:, right_B]
    to_image = functional.cross_entropy(logits_BB.T, torch.arange(len(right_B), device=logits_BB.device))
    return (to_text + to_image) / 2
