"""Objectives of the adapt stage besides the teachers' signals: a contrast of pictures and texts, and an anchor.

The contrast (docs/method.md) pulls picture and text summaries of the downstream inputs together. The anchor keeps
pretrained states in place, except those that the step is to move.

Shapes: B examples, N sequences (all candidates of all examples), L tokens, R visual tokens, W words, X nodes, E
width of the common space, H student width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from advl_pipeline.datasets.words import NO_WORD
from advl_pipeline.distillation.relational import Gather
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.students.interface import StudentBatch, StudentOutput


def image_text_contrast(
    image_BE: torch.Tensor,
    text_NE: torch.Tensor,
    pulled_BN: torch.Tensor,
    *,
    left_out_BN: torch.Tensor,
    temperature: torch.Tensor,
) -> torch.Tensor:
    """Return a symmetric InfoNCE with in-batch negatives, where several texts may belong to a picture.

    For a picture the loss is -log of the share of its texts, as a group, in the softmax over all texts of the batch.
    For each group of texts it identifies the group's picture in the batch, by the summed similarity of the texts.

    Args:
        image_BE: picture summaries.
        pulled_BN: bool, the texts that belong to each picture, at least one.
        left_out_BN: bool, texts that are neither pulled to a picture nor pushed from it.
        temperature: scalar, positive.

    Returns:
        Scalar, the mean of the two directions.
    """
    # In bf16, rounding of similarities over a small temperature would exceed the differences between texts.
    with torch.autocast(image_BE.device.type, enabled=False):
        image = functional.normalize(image_BE.float(), dim=-1)
        text = functional.normalize(text_NE.float(), dim=-1)
        logits_BN = (image @ text.T / temperature).masked_fill(left_out_BN, -torch.inf)
        own_B = logits_BN.masked_fill(~pulled_BN, -torch.inf).logsumexp(1)
        to_text = (logits_BN.logsumexp(1) - own_B).mean()
        # The fit of every picture (first axis) to the texts of every example (second).
        groups_BB = logits_BN[:, None, :].masked_fill(~pulled_BN[None], -torch.inf).logsumexp(2)
        to_image = (groups_BB.logsumexp(0) - own_B).mean()
    return (to_text + to_image) / 2


def anchor_loss(
    states: StudentOutput,
    reference: StudentOutput,
    batch: StudentBatch,
    signal: TeacherSignal,
    known: Mapping[str, torch.Tensor],
    anchored_B: torch.Tensor | None = None,
    *,
    gather: Gather,
) -> torch.Tensor:
    """Return the drift of the student's text and picture states from their pretrained values.

    In texts, the anchor covers words in proportion to the student's knowledge, words of the task's wording, and
    tokens without a word, the first of which feeds the heads. In pictures it covers everything except regions that a
    teacher places.

    Args:
        states: of the student, from one modality each.
        reference: states of the pretrained student on the same batch.
        signal: provides how well pretraining knew each word, and the teachers' regions.
        known: from `Distiller.known_regions`.
        anchored_B: bool, the examples whose pictures count; None for all.
        gather: collects tensors from the processes that share the batch.
    """
    words = signal.words
    assert words is not None
    held_NW = torch.where(words.frequent_NW, 1.0, words.known_NW)
    word_NL = words.word_of_token_NL
    held_NL = torch.where(word_NL == NO_WORD, 1.0, held_NW.gather(1, word_NL.clamp(min=0)))
    # Visual tokens of regions that a teacher places.
    placed_BR = torch.zeros_like(batch.visual_mask_NR.index_select(0, batch.first_B))
    for name, known_BS in known.items():
        part = signal.vision[name]
        assert part.region_mask_BS is not None
        unplaced_BS = part.region_mask_BS & ~known_BS
        if part.shares_BSR is not None:
            unplaced_BS = ((part.shares_BSR > 0) & unplaced_BS[:, :, None]).any(1)
        placed_BR |= unplaced_BS
    visible_NR = batch.visual_mask_NR & ~placed_BR.index_select(0, batch.example_N)
    if anchored_B is not None:
        visible_NR = visible_NR & anchored_B.index_select(0, batch.example_N)[:, None]

    def held(
        current: torch.Tensor, pretrained: torch.Tensor, shown: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return drift(*gather(current.flatten(0, 1), pretrained.flatten(0, 1), weight.flatten(), shown.flatten()))

    return held(states.text_states_NLH, reference.text_states_NLH, batch.token_mask_NL, held_NL) + held(
        states.visual_states_NRH, reference.visual_states_NRH, visible_NR, torch.ones_like(visible_NR).float()
    )


def drift(
    states_XH: torch.Tensor, reference_XH: torch.Tensor, weight_X: torch.Tensor, shown_X: torch.Tensor
) -> torch.Tensor:
    """Return a scalar: the drift of states from their pretrained values, in units of their variance.

    Args:
        reference_XH: states of the pretrained student on the same inputs.
        weight_X: at least 0, how well pretraining knew each node; nodes with 0 may move. The drift is 0 if all
            weights are 0, or if all nodes of the reference are equal, which leaves no unit of measurement.
        shown_X: bool, the nodes that exist; the others are padding.
    """
    reference, shown_X1 = reference_XH.detach().float(), shown_X.float()[:, None]
    number = shown_X1.sum().clamp(min=1.0)
    mean_H = (reference * shown_X1).sum(0) / number
    variance = ((reference - mean_H).square() * shown_X1).sum(0).mean() / number
    # For equal nodes, rounding leaves a small variance in the last bits.
    alike = variance <= torch.finfo(torch.float32).eps ** 2 * (reference.square() * shown_X1).sum(0).mean() / number
    moved_X = (states_XH.float() - reference).square().mean(-1) / variance.masked_fill(alike, 1.0)
    weight_X = weight_X * shown_X1[:, 0]
    return (moved_X * weight_X).sum().masked_fill(alike, 0.0) / weight_X.sum().clamp(min=1.0)
