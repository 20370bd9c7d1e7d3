"""The contrastive part of the adapt step (docs/method.md): picture and text summaries of the downstream inputs.

Shapes: B examples, N sequences (all candidates of all examples), E width of the common space.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from advl_pipeline.distillation.pooling import example_of_sequence, first_sequences
from advl_pipeline.distillation.relational import Gather


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


def batch_contrast(
    own_image_BE: torch.Tensor,
    text_NE: torch.Tensor,
    right_B: torch.Tensor,
    image_ids_B: torch.Tensor,
    *,
    num_candidates: tuple[int, ...],
    known_B: torch.Tensor | None,
    temperature: torch.Tensor,
    gather: Gather,
) -> torch.Tensor:
    """Return the contrast of a batch that several processes may share; see `Distiller.contrast`.

    Args:
        own_image_BE: what the right candidate's pass shows of the picture.
        num_candidates: of each example.
    """
    starts_B = first_sequences(num_candidates, right_B.device)
    counts = tuple(gather(torch.tensor(num_candidates, device=right_B.device)).tolist())
    right_B = first_sequences(counts, right_B.device) + gather(right_B - starts_B)
    image_ids_B = gather(image_ids_B)
    example_N = example_of_sequence(counts, right_B.device)
    pulled_BN = torch.arange(len(example_N), device=right_B.device)[None, :] == right_B[:, None]
    if known_B is not None:
        is_own_BN = example_N[None, :] == torch.arange(len(right_B), device=right_B.device)[:, None]
        pulled_BN = torch.where(gather(known_B)[:, None], pulled_BN, is_own_BN)
    same_picture_BN = image_ids_B[:, None] == image_ids_B[example_N][None, :]
    return image_text_contrast(
        gather(own_image_BE),
        gather(text_NE),
        pulled_BN,
        left_out_BN=same_picture_BN & ~pulled_BN,
        temperature=temperature,
    )
