"""The two pathways: what is compared of the student's states and one teacher's signal.

docs/method.md: L_V = D(P_v(v_img), g(I)) [+ mean over boxes of D(P_r(v_r), g_r(I))];
L_T = D(P_cls(h_cls), t_*) + mean over selected words of D(P_t(h_j), t_j). Separate pathways are the paper's; the
distances, targets and projections are our reading. In the second reading (`relational.py`) no projection is needed.
Shapes: B examples, N sequences, R visual tokens, S boxes, W words, H student width, D teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from advl_pipeline.distillation.distance import Distance, distance
from advl_pipeline.distillation.pooling import masked_mean
from advl_pipeline.distillation.signal import TextSignal, VisionSignal

VisionTarget = Literal["image", "regions", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWidths:
    """Feature widths of one teacher, by modality; None where it has no such features."""

    image_global: int | None = None
    image_region: int | None = None
    text_global: int | None = None
    text_token: int | None = None


class VisionProjections(nn.Module):
    """Linear maps from the student's width to one vision teacher's; alive only in training. None: no such target."""

    def __init__(self, student_width: int, teacher: TeacherWidths) -> None:
        super().__init__()
        self.image = _projection(student_width, teacher.image_global)
        self.region = _projection(student_width, teacher.image_region)


class TextProjections(nn.Module):
    """Linear maps from the student's width to one text teacher's; alive only in training. None: no such target."""

    def __init__(self, pooled_width: int, student_width: int, teacher: TeacherWidths) -> None:
        super().__init__()
        self.summary = _projection(pooled_width, teacher.text_global)
        self.word = _projection(student_width, teacher.text_token)


def _projection(student_width: int, teacher_width: int | None) -> nn.Linear | None:
    return nn.Linear(student_width, teacher_width) if teacher_width else None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one term of a pathway compares: states (N, H) or (N, X, H), and targets of as many vectors of width D.

    `mask_NX` is bool, which of several vectors count; None where there is one in each row.
    """

    projection: nn.Linear
    states: torch.Tensor
    targets: torch.Tensor
    mask_NX: torch.Tensor | None = None

    def distances(self, kind: Distance) -> torch.Tensor:
        """Return (N,) or (N, X): the distance of each vector."""
        return distance(self.projection(self.states), self.targets, kind)

    def loss(self, kind: Distance) -> torch.Tensor:
        """Return (N,): the distance, or the mean of those that count, 0 for a row without any."""
        each = self.distances(kind)
        return each if self.mask_NX is None else masked_mean(each, self.mask_NX)


def vision_pairs(
    projections: VisionProjections,
    signal: VisionSignal,
    *,
    image_BH: torch.Tensor,
    regions_BSH: torch.Tensor | None,
    region_seen_BS: torch.Tensor | None,
    target: VisionTarget,
) -> dict[str, Pair]:
    """Return the pairs `image` and `region`, of those that there are.

    Args:
        regions_BSH: the student's state of each box, where it has boxes.
        region_seen_BS: bool, whether the student has a state for a box.
        target: which of the two terms count. A picture without any common box has no region term.
    """
    pairs = {}
    if target in ("image", "both") and projections.image is not None:
        pairs["image"] = Pair(projection=projections.image, states=image_BH, targets=signal.global_BD)
    if (
        target in ("regions", "both")
        and projections.region is not None
        and signal.regions_BSD is not None
        and regions_BSH is not None
    ):
        assert signal.region_mask_BS is not None
        assert region_seen_BS is not None
        pairs["region"] = Pair(
            projection=projections.region,
            states=regions_BSH,
            targets=signal.regions_BSD,
            mask_NX=signal.region_mask_BS & region_seen_BS,
        )
    return pairs


def text_pairs(
    projections: TextProjections, signal: TextSignal, *, pooled_NP: torch.Tensor, words_NWH: torch.Tensor
) -> dict[str, Pair]:
    """Return the pairs `summary`, of the whole sequence, and `word`, of those that there are."""
    pairs = {}
    if projections.summary is not None:
        pairs["summary"] = Pair(projection=projections.summary, states=pooled_NP, targets=signal.global_ND)
    if projections.word is not None and signal.words_NWD is not None:
        pairs["word"] = Pair(projection=projections.word, states=words_NWH, targets=signal.words_NWD)
    return pairs


def pairs_loss(pairs: Mapping[str, Pair], kind: Distance, *, like_N: torch.Tensor) -> torch.Tensor:
    """Return (N,) float32: the sum of the pairs' losses, 0 where there is no pair; as long as `like_N`."""
    nothing_N = torch.zeros_like(like_N, dtype=torch.float32)
    return sum((pair.loss(kind) for pair in pairs.values()), nothing_N)
