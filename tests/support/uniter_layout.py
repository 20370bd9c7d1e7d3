"""UNITER's own layout of a batch, which its reference arrays are in."""

from __future__ import annotations

from typing import Any

import torch


def pack(text_NLH: torch.Tensor, regions_NRH: torch.Tensor, index_NS: torch.Tensor) -> torch.Tensor:
    """Return (N, S, H): text and regions of each sequence next to one another, an arbitrary tail behind."""
    joined = torch.cat([text_NLH, regions_NRH], dim=1)
    return joined.gather(1, index_NS[..., None].expand(-1, -1, joined.shape[-1]))


def run_layers(model: Any, x_NSH: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the states after each layer of a model's encoder, (N, S, H) each."""
    states = []
    for layer in model.encoder.layer:
        x_NSH = layer(x_NSH, bias)
        states.append(x_NSH)
    return tuple(states)
