"""The anchor of the adapt step: what pretraining taught stays where it left it, as far as it is not to be moved.

Shapes: B examples, N sequences, L tokens, R visual tokens, W words, X nodes, H student width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from advl_pipeline.datasets.words import NO_WORD
from advl_pipeline.distillation.pooling import example_of_sequence, first_sequences
from advl_pipeline.distillation.relational import Gather
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.students.interface import StudentBatch, StudentOutput


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
    """Return how far text that pretraining taught, and what pictures show, have moved from where it left them.

    Held are words as far as it knew them, words that are part of how the task asks, and tokens of no word, from
    the first of which heads read. Of pictures everything is held but regions that a teacher places.

    Args:
        states: of the student, from one modality each.
        reference: those of the student as it was pretrained, on the same batch.
        signal: with how well pretraining knew each word, and the teachers' regions.
        known: of `Distiller.known_regions`.
        anchored_B: bool, whose pictures count; None for all.
        gather: of the processes that share the batch.
    """
    words = signal.words
    assert words is not None
    held_NW = torch.where(words.frequent_NW, 1.0, words.known_NW)
    word_NL = words.word_of_token_NL
    held_NL = torch.where(word_NL == NO_WORD, 1.0, held_NW.gather(1, word_NL.clamp(min=0)))
    shown_NL = batch.token_mask_NL
    visible_NR = batch.visual_mask_NR & ~_placed_tokens(signal, known, batch)
    if anchored_B is not None:
        visible_NR = visible_NR & anchored_B[example_of_sequence(batch.num_candidates, anchored_B.device)][:, None]
    visual_XH = gather(states.visual_states_NRH[visible_NR])
    return drift(
        gather(states.text_states_NLH[shown_NL]),
        gather(reference.text_states_NLH[shown_NL]),
        gather(held_NL[shown_NL]),
    ) + drift(
        visual_XH,
        gather(reference.visual_states_NRH[visible_NR]),
        torch.ones(len(visual_XH), device=visual_XH.device),
    )


def drift(states_XH: torch.Tensor, reference_XH: torch.Tensor, weight_X: torch.Tensor) -> torch.Tensor:
    """Return a scalar: how far states have moved from where pretraining left them, in units of their variance.

    Args:
        reference_XH: those of the student as it was pretrained, on the same inputs.
        weight_X: at least 0, how well pretraining knew each node; the others may move. All zero gives 0, and so does
            a reference whose nodes are all alike: it has no unit to measure in.
    """
    if not len(states_XH):
        return states_XH.sum()
    reference = reference_XH.detach().float()
    variance = reference.var(0, unbiased=False).mean()
    # Of nodes that are alike, rounding leaves a variance in the last bits.
    alike = variance <= torch.finfo(torch.float32).eps ** 2 * reference.square().mean()
    moved_X = (states_XH.float() - reference).square().mean(-1) / variance.masked_fill(alike, 1.0)
    return (moved_X * weight_X).sum().masked_fill(alike, 0.0) / weight_X.sum().clamp(min=1.0)


def _placed_tokens(signal: TeacherSignal, known: Mapping[str, torch.Tensor], batch: StudentBatch) -> torch.Tensor:
    """Return (N, R) bool: the visual tokens that stand for a region which a teacher places."""
    placed_BR = torch.zeros_like(
        batch.visual_mask_NR[first_sequences(batch.num_candidates, batch.visual_mask_NR.device)]
    )
    for name, known_BS in known.items():
        one = signal.vision[name]
        assert one.region_mask_BS is not None
        unplaced_BS = one.region_mask_BS & ~known_BS
        if one.shares_BSR is not None:
            unplaced_BS = ((one.shares_BSR > 0) & unplaced_BS[:, :, None]).any(1)
        placed_BR |= unplaced_BS
    return placed_BR[example_of_sequence(batch.num_candidates, placed_BR.device)]
