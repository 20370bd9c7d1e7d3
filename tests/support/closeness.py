"""How near numbers must lie to others that were computed in another order, or by another machine's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

ROUNDINGS = 256
"""Steps of the dtype by which numbers may be off, of the size of the largest: kernels sum up in other orders."""


def largest(values: Iterable[torch.Tensor]) -> float:
    """Return the largest number of several tensors: the scale of gradients, of which some cancel to nothing."""
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
    """Hold tensors, arrays or numbers against others; the tolerance follows their dtype and the largest of them.

    Args:
        roundings: steps of the dtype, of a number as large as the largest.
        scale: size of what was summed up, where that is larger than the sums.
        dtype: what the numbers were computed or stored in, where that is coarser than their own.
        name: what is compared, for the message.
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
