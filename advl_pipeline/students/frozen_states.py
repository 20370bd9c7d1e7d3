"""States of frozen networks: the same in every epoch, so that on a CPU they are computed once and kept in memory.

Each input is read by itself, so that its states are the same to the bit whatever else is in a batch. Networks of
equal weights share what is kept, so that runs of one process, as those of a study's worker, compute it once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Final

import torch
from torch import nn

from advl_pipeline.students.picture_source import RecentlyUsed

KEPT_BYTES: Final = 1 << 30
"""How much of one network's states stays in memory."""


class FrozenStates(RecentlyUsed[torch.Tensor]):
    """States by the content of what was read; the least recently used ones are dropped."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        super().__init__(max_bytes)

    def of(self, read: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Return what `read` makes of the inputs, in the precision of the network's weights."""
        content = blake2b(digest_size=16)
        for tensor in inputs:
            content.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            content.update(tensor.contiguous().numpy().tobytes())
        return self.get(content.hexdigest(), partial(_computed, read, *inputs))


def states_of(network: nn.Module, *, read_as: str = "") -> FrozenStates:
    """Return what is kept of the states of networks with these weights, for the last few of them.

    Args:
        read_as: what the states depend on beside weights and inputs, such as the grid that maps are averaged to.
    """
    weights = blake2b(read_as.encode(), digest_size=16)
    for name, tensor in network.state_dict().items():
        weights.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        values = tensor.cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        weights.update(values.view(torch.uint8).numpy().tobytes())
    return _by_weights(weights.hexdigest())


# As many networks as a student has towers.
@lru_cache(maxsize=2)
def _by_weights(digest: str) -> FrozenStates:
    return FrozenStates()


def keeps_states(network: nn.Module, inputs: torch.Tensor) -> bool:
    """Say whether a network's states are kept: on a CPU, where nothing of it is trained."""
    if inputs.device.type != "cpu" or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not any(parameter.requires_grad for parameter in network.parameters())


@torch.no_grad()
def _computed(read: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return read(*inputs)
