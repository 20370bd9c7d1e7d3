"""The plain baseline: projections of the student's states follow the features of one teacher.

docs/method.md, first reading: L_V = D(P(v_img), g(I)) [+ mean over regions of D(P(v_r), g_r(I))];
L_T = D(P(h_cls), t) + mean over the selected words of D(P(h_j), t_j).
Shapes: N sequences, X vectors of a sequence, S regions, W words, H student width, D teacher width.
"""

from __future__ import annotations

import torch
from torch import nn

from advl_pipeline.distillation.distance import Distance, distance
from advl_pipeline.distillation.pooling import image_state, masked_mean, pool_to_regions
from advl_pipeline.distillation.settings import VisionTarget
from advl_pipeline.distillation.signal import TextSignal, VisionSignal
from advl_pipeline.students.interface import StudentBatch, StudentOutput


class Projections(nn.ModuleDict):
    """Maps from the student's states to one teacher's features, by kind of feature; they live only in training."""

    def __init__(self, **widths: tuple[int, int | None]) -> None:
        """Args:
        widths: kind -> width of the student's states, and of the teacher's features; None for none of this kind.
        """
        super().__init__(
            {kind: nn.Linear(states, features) for kind, (states, features) in widths.items() if features}
        )

    def loss(
        self,
        kind: str,
        states: torch.Tensor,
        features: torch.Tensor,
        distance_kind: Distance,
        mask_NX: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (N,): the distance of each projected state to its feature.

        Args:
            states: (N, H), or (N, X, H) with a mask.
            features: (N, D) or (N, X, D).
            mask_NX: bool, which of several vectors count; the mean is over these, and 0 for a row without any.
        """
        each = distance(self[kind](states), features, distance_kind)
        return each if mask_NX is None else masked_mean(each, mask_NX)


def projected_vision(
    projections: Projections,
    distilled: StudentOutput,
    batch: StudentBatch,
    signal: VisionSignal,
    target: VisionTarget,
    kind: Distance,
) -> torch.Tensor:
    """Return (N,): the distance of the whole picture, of its regions, or their sum; `signal` is by sequence."""
    loss_N = torch.zeros(batch.num_sequences, device=distilled.visual_states_NRH.device)
    if target in ("image", "both"):
        loss_N = loss_N + projections.loss("image", image_state(distilled, batch), signal.global_BD, kind)
    if target in ("regions", "both") and signal.regions_BSD is not None:
        assert signal.region_mask_BS is not None
        regions_NSH, seen_NS = pool_to_regions(distilled.visual_states_NRH, signal.shares_BSR)
        counted_NS = signal.region_mask_BS & seen_NS
        loss_N = loss_N + projections.loss("region", regions_NSH, signal.regions_BSD, kind, counted_NS)
    return loss_N


def projected_text(
    projections: Projections,
    pooled_NP: torch.Tensor,
    words_NWH: torch.Tensor,
    signal: TextSignal,
    selected_NW: torch.Tensor,
    kind: Distance,
) -> torch.Tensor:
    """Return (N,): the distance of the whole text and, where the teacher has words, of the selected ones."""
    loss_N = projections.loss("summary", pooled_NP, signal.global_ND, kind)
    if signal.words_NWD is not None:
        loss_N = loss_N + projections.loss("word", words_NWH, signal.words_NWD, kind, selected_NW)
    return loss_N
