"""Distances between student projections and teacher targets.

docs/method.md, Distance: D(a, b) = mean over width of f(LN(a) - sg LN(b)); our reading of the paper.
Shapes: ... any leading axes, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

Distance = Literal["mse", "l1", "cosine", "smooth-l1"]


def distance(a_D: torch.Tensor, target_D: torch.Tensor, kind: Distance) -> torch.Tensor:
    """Return the distance of each vector to its target, without gradient into the target.

    Args:
        a_D: (..., D), the student's projection.
        target_D: (..., D), the teacher's feature, standardised or not.
        kind: f is the square, the absolute value or Huber's function; `cosine` is 1 - cosine instead.

    Returns:
        (...), one distance per vector; 0 where both point the same way, whatever their lengths.
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
