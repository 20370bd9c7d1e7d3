"""The two pathways: one loss per instance from the student's states and one teacher's signal.

docs/method.md: L_V = D(P_v(v_img), g(I)) [+ mean over boxes of D(P_r(v_r), g_r(I))];
L_T = D(P_cls(h_cls), t_*) + mean over selected words of D(P_t(h_j), t_j). Separate pathways are the paper's; the
distances, targets and projections are our reading. In the second reading no projection is needed: each node (a word,
a region) is compared with the others of the batch.
Shapes: B examples, N sequences, R visual tokens, S boxes, W words, H student width, D teacher width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from advl_pipeline.distillation.distance import Distance, distance
from advl_pipeline.distillation.relational import relational_divergence
from advl_pipeline.distillation.signal import TextSignal, VisionSignal

VisionTarget = Literal["image", "regions", "both"]


class VisionProjections(nn.Module):
    """Linear maps from the student's width to one vision teacher's; alive only in training."""

    def __init__(self, student_width: int, global_dim: int, region_dim: int | None) -> None:
        super().__init__()
        self.image = nn.Linear(student_width, global_dim)
        self.region = nn.Linear(student_width, region_dim) if region_dim else None


class TextProjections(nn.Module):
    """Linear maps from the student's width to one text teacher's; alive only in training."""

    def __init__(self, pooled_width: int, student_width: int, global_dim: int, word_dim: int | None) -> None:
        super().__init__()
        self.summary = nn.Linear(pooled_width, global_dim)
        self.word = nn.Linear(student_width, word_dim) if word_dim else None


def vision_loss(
    projections: VisionProjections,
    signal: VisionSignal,
    *,
    image_BH: torch.Tensor,
    regions_BSH: torch.Tensor | None,
    region_seen_BS: torch.Tensor | None,
    target: VisionTarget,
    kind: Distance,
) -> torch.Tensor:
    """Return (B,): distance of the picture's state to the teacher's, plus the mean over boxes.

    Args:
        projections: of this teacher.
        signal: of this teacher.
        image_BH: the student's whole-picture state.
        regions_BSH: the student's state of each box, where it has boxes.
        region_seen_BS: bool, whether the student has a state for a box.
        target: which of the two terms count. A picture without any common box has no region term.
        kind: the distance.
    """
    loss_B = image_BH.new_zeros(len(image_BH), dtype=torch.float32)
    if target in ("image", "both"):
        loss_B = loss_B + distance(projections.image(image_BH), signal.global_BD, kind)
    if target in ("regions", "both") and signal.regions_BSD is not None and regions_BSH is not None:
        assert projections.region is not None
        assert signal.region_mask_BS is not None
        assert region_seen_BS is not None
        each_BS = distance(projections.region(regions_BSH), signal.regions_BSD, kind)
        loss_B = loss_B + masked_mean(each_BS, signal.region_mask_BS & region_seen_BS)
    return loss_B


def text_loss(
    projections: TextProjections,
    signal: TextSignal,
    *,
    pooled_NP: torch.Tensor,
    words_NWH: torch.Tensor,
    selected_NW: torch.Tensor,
    kind: Distance,
) -> torch.Tensor:
    """Return (N,): distance of the sequence's summary to the teacher's, plus the mean over the selected words."""
    loss_N = distance(projections.summary(pooled_NP), signal.global_ND, kind)
    if signal.words_NWD is not None:
        loss_N = loss_N + masked_mean(word_distances(projections, signal, words_NWH, kind), selected_NW)
    return loss_N


def word_distances(
    projections: TextProjections, signal: TextSignal, words_NWH: torch.Tensor, kind: Distance
) -> torch.Tensor:
    """Return (N, W): distance of each word to the teacher's."""
    assert projections.word is not None
    assert signal.words_NWD is not None
    return distance(projections.word(words_NWH), signal.words_NWD, kind)


def node_divergences(
    states_NWH: torch.Tensor,
    features_NWD: torch.Tensor,
    *,
    node_NW: torch.Tensor,
    group_NW: torch.Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> torch.Tensor:
    """Return (N, W): the relational divergence of each node among all nodes of the batch, 0 where there is none.

    Args:
        states_NWH: the student's words, or regions.
        features_NWD: the teacher's.
        node_NW: bool, what is compared: words with a meaning that both sides have, or common regions.
        group_NW: int64, nodes of one group are not compared.
        student_temperature: of the student's distributions.
        teacher_temperature: of the teacher's.
    """
    each_X = relational_divergence(
        states_NWH[node_NW],
        features_NWD[node_NW],
        group_NW[node_NW],
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    return torch.zeros(node_NW.shape, device=each_X.device).masked_scatter(node_NW, each_X)


def masked_mean(values_NW: torch.Tensor, mask_NW: torch.Tensor) -> torch.Tensor:
    """Return (N,): mean over the valid entries of each row, 0 for a row without any."""
    kept = torch.where(mask_NW, values_NW, torch.zeros_like(values_NW))
    return kept.sum(1) / mask_NW.sum(1).clamp(min=1)
