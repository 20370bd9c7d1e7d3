"""Students over networks that others trained, and the states of such networks while nothing of them is trained.

Those are the same in every epoch, so that on a CPU they are computed once and kept in memory. Each input is read by
itself, so that its states are the same to the bit whatever else is in a batch. Networks of equal weights share what
is kept, so that runs of one process, as those of a study's worker, compute it once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, ClassVar, Final, Self

import timm
import torch
from torch import nn

from advl_pipeline.base.batch_norms import fold_batch_norms
from advl_pipeline.students.interface import Student
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


class TowerStudent(Student):
    """A student with parts whose weights are those of other networks: `tower_parts`, in the order of `towers`."""

    tower_parts: ClassVar[tuple[str, ...]]
    _kept_states: dict[str, FrozenStates]

    def hold_towers(self) -> None:
        """Freeze the towers; a class calls it when it has built them."""
        for tower in self._towers:
            tower.requires_grad_(False)
        _forget(self)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @property
    def _towers(self) -> list[nn.Module]:
        return [self.get_submodule(part) for part in self.tower_parts]

    def take_towers(self, networks: Sequence[nn.Module]) -> None:
        for tower, network in zip(self._towers, networks, strict=True):
            state = network.state_dict()
            tower.load_state_dict({name: state[name] for name in tower.state_dict()})
        _forget(self)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for tower in self._towers:
            tower.eval()
        return self

    def kept_states(self, part: str, inputs: torch.Tensor, *, read_as: str = "") -> FrozenStates | None:
        """Return what is kept of a tower's states; None where it is trained or its inputs are not on a CPU.

        Args:
            read_as: what the states depend on besides weights and inputs, such as a grid that maps are averaged to.
        """
        tower = self.get_submodule(part)
        if not keeps_states(tower, inputs):
            return None
        if part not in self._kept_states:
            self._kept_states[part] = _states_of(tower, read_as)
        return self._kept_states[part]


def _forget(student: TowerStudent, *_: object) -> None:
    """Drop the kept states, which are those of other weights."""
    student._kept_states = {}


def keeps_states(network: nn.Module, inputs: torch.Tensor) -> bool:
    """Say whether a network's states are kept: on a CPU, where nothing of it is trained."""
    return inputs.device.type == "cpu" and not any(parameter.requires_grad for parameter in network.parameters())


def efficientnet_lite0(**settings: Any) -> Any:
    """Return the network of the teacher of that name, its batch norms folded, with random weights.

    Args:
        settings: of timm's model, such as `num_classes`.
    """
    with torch.device("cpu"):  # Whether norms fold is seen by the values.
        network = timm.create_model("tf_efficientnet_lite0", **settings).eval()
        folded: Any = fold_batch_norms(network, torch.rand(1, 3, 64, 64))
    return folded.to(memory_format=torch.channels_last)


def _states_of(network: nn.Module, read_as: str) -> FrozenStates:
    """Return what is kept of the states of networks with these weights, for the last few of them."""
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


@torch.no_grad()
def _computed(read: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return read(*inputs)
