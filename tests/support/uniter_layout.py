"""UNITER's own layout of a batch, which its reference arrays are in."""

from __future__ import annotations

import torch


def pack(text_NLH: torch.Tensor, regions_NRH: torch.Tensor, index_NS: torch.Tensor) -> torch.Tensor:
    """Return (N, S, H): text and regions of each sequence next to one another, an arbitrary tail behind."""
    joined = torch.cat([text_NLH, regions_NRH], dim=1)
    return joined.gather(1, index_NS[..., None].expand(-1, -1, joined.shape[-1]))
