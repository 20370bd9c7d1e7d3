"""The first reading, a simple baseline: projections of the student's states follow the features of one teacher.

docs/method.md: L_V = D(P(v_img), g(I)) [+ mean over regions of D(P(v_r), g_r(I))]; L_T = D(P(h_cls), t) + mean over
the selected words of D(P(h_j), t_j), with D(a, b) = mean over width of f(LN(a) - sg LN(b)). P is linear. For visual
states it may be a projector from work on generative models (`build_projector`). There, image tokens at half the depth
follow a vision expert by cosine, at a constant weight of 0.2 to 0.5.
Shapes: N sequences, R visual tokens, S boxes, W words, X vectors of a sequence, H student width, D teacher width.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from advl_pipeline.distillation.pooling import image_state, masked_mean, pool_to_regions
from advl_pipeline.distillation.settings import Projector, VisionTarget
from advl_pipeline.distillation.signal import TextSignal, VisionSignal
from advl_pipeline.students.interface import StudentBatch, StudentOutput

Distance = Literal["mse", "l1", "cosine", "smooth-l1"]

MLP_WIDTH = 2048


def build_projector(kind: Projector, states: int, features: int) -> nn.Module:
    """Return a map between two widths; `mlp` is VIRAL's (three layers, SiLU, 2,048 wide)."""
    if kind == "linear":
        return nn.Linear(states, features)
    widths = [states, MLP_WIDTH, MLP_WIDTH, features]
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])


class Projections(nn.ModuleDict):
    """Maps from the student's states to one teacher's features, by kind of feature; they exist only in training."""

    def __init__(self, projector: Projector = "linear", **widths: tuple[int, int | None]) -> None:
        """Args:
        widths: kind -> width of the student's states, and of the teacher's features; None if there are none.
        """
        super().__init__(
            {
                kind: build_projector(projector, states, features)
                for kind, (states, features) in widths.items()
                if features
            }
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
            mask_NX: bool, which vectors count; the mean is over these, and 0 for a row without any.
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
    """Return (N,): the distance of the picture, of its regions, or their sum; `signal` is by sequence."""
    loss_N = torch.zeros(batch.num_sequences, device=distilled.visual_states_NRH.device)
    if target in ("image", "both"):
        loss_N = loss_N + projections.loss("image", image_state(distilled, batch), signal.global_BD, kind)
    if target in ("regions", "both") and signal.regions_BSD is not None:
        regions_NSH = pool_to_regions(distilled.visual_states_NRH, signal.shares_BSR)
        loss_N = loss_N + projections.loss("region", regions_NSH, signal.regions_BSD, kind, signal.shared_BS)
    return loss_N


def projected_text(
    projections: Projections,
    pooled_NP: torch.Tensor,
    words_NWH: torch.Tensor,
    signal: TextSignal,
    selected_NW: torch.Tensor,
    kind: Distance,
) -> torch.Tensor:
    """Return (N,): the distance of the text and, if the teacher has words, of the selected words."""
    loss_N = projections.loss("summary", pooled_NP, signal.global_ND, kind)
    if signal.words_NWD is not None:
        loss_N = loss_N + projections.loss("word", words_NWH, signal.words_NWD, kind, selected_NW)
    return loss_N


def distance(a_D: torch.Tensor, target_D: torch.Tensor, kind: Distance) -> torch.Tensor:
    """Return the distance of each vector to its target, without gradient into the target.

    Args:
        a_D: (..., D), the student's projection.
        target_D: (..., D), the teacher's feature, standardised or not.
        kind: f is the square, the absolute value or Huber's function; `cosine` is 1 - cosine instead.

    Returns:
        (...), one distance per vector; 0 where both have the same direction, whatever their lengths.
    """
    width = (a_D.shape[-1],)
    a = functional.layer_norm(a_D.float(), width)
    b = functional.layer_norm(target_D.detach().float(), width)
    if kind == "mse":
        return (a - b).square().mean(-1)
    if kind == "l1":
        return (a - b).abs().mean(-1)
    if kind == "smooth-l1":
        return functional.smooth_l1_loss(a, b, reduction="none").mean(-1)
    return 1.0 - functional.cosine_similarity(a, b, dim=-1)
