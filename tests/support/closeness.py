"""Tolerances for numbers computed in another order or by another machine's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

ROUNDINGS = 256
"""Allowed difference in rounding steps of the dtype at the largest number: kernels sum in different orders."""


def largest(values: Iterable[torch.Tensor]) -> float:
    """Return the largest number of several tensors: the scale of gradients, some of which cancel out."""
    return max(float(value.detach().abs().max()) for value in values)


def assert_near(
    actual: Any,
    expected: Any,
    *,
    roundings: int = ROUNDINGS,
    scale: float = 0.0,
    dtype: torch.dtype | None = None,
    name: str = "",
) -> None:
    """Assert that tensors, arrays or numbers are close; the tolerance depends on their dtype and largest value.

    Args:
        roundings: allowed rounding steps of the dtype at the largest value.
        scale: size of the summands, if larger than the sums.
        dtype: of computation or storage, if coarser than the numbers' own.
        name: of the compared quantity, for the message.
    """
    ours, theirs = torch.as_tensor(actual), torch.as_tensor(expected)
    coarsest = dtype or (ours.dtype if ours.is_floating_point() else theirs.dtype)
    size = max(largest([theirs]) if theirs.numel() else 0.0, scale)
    tolerance = roundings * torch.finfo(coarsest).eps * size
    torch.testing.assert_close(
        ours,
        theirs.to(ours.dtype),
        atol=tolerance,
        rtol=0.0,
        msg=lambda found: f"{name}: {found}" if name else found,
    )
