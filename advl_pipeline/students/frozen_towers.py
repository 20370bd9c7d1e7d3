"""Students with pretrained networks (towers), and a cache of the states of frozen towers.

States of frozen towers are the same in every epoch, so on a CPU they are computed once and kept in memory. Each input
is encoded separately, so that its states do not depend on the rest of the batch, bit for bit. Networks with equal
weights share the cache, so runs of one process, such as a study's worker, compute the states once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar, Final, Self

import timm
import torch
from torch import nn

from advl_pipeline.base.batch_norms import fold_batch_norms
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import RecentlyUsed

KEPT_BYTES: Final = 2 << 30
"""Maximum size in memory of the states of all networks."""

kept_states: RecentlyUsed[torch.Tensor] = RecentlyUsed(KEPT_BYTES)
"""States by the content of weights and inputs; least recently used states are dropped."""


class TowerStudent(Student):
    """A student with parts that copy the weights of other networks: `tower_parts`, in the order of `towers`."""

    towers: ClassVar[tuple[str, ...]]
    tower_parts: ClassVar[tuple[str, ...]]
    _tower_digests: dict[str, str]

    def hold_towers(self) -> None:
        """Freeze the towers; subclasses call it after building them."""
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

    def keeps_states(self, part: str, inputs: torch.Tensor) -> bool:
        """Return whether a tower's states are cached: on a CPU, if the tower is frozen."""
        parameters = self.get_submodule(part).parameters()
        return inputs.device.type == "cpu" and not any(parameter.requires_grad for parameter in parameters)

    def kept(
        self, part: str, read: Callable[..., torch.Tensor], *inputs: torch.Tensor, read_as: str = ""
    ) -> torch.Tensor:
        """Return a tower's states for inputs, from the cache if possible, in the precision of its weights.

        Args:
            read: runs the tower.
            read_as: further dependencies of the states, such as the grid to which feature maps are averaged.
        """
        if part not in self._tower_digests:
            state = self.get_submodule(part).state_dict()
            self._tower_digests[part] = _digest(" ".join(state), *state.values())
        name = _digest(f"{self._tower_digests[part]} {read_as}", *inputs)
        return kept_states.get(name, partial(_computed, read, *inputs))


def _forget(student: TowerStudent, *_: object) -> None:
    """Reset the digests of the towers' weights after the weights changed."""
    student._tower_digests = {}


def efficientnet_lite0(**settings: Any) -> Any:
    """Return the network of the teacher efficientnet-lite0, with folded batch norms and random weights.

    Args:
        settings: settings of timm's model, such as `num_classes`.
    """
    with torch.device("cpu"):  # Folding is checked by comparing values.
        network = timm.create_model("tf_efficientnet_lite0", **settings).eval()
        folded: Any = fold_batch_norms(network, torch.rand(1, 3, 64, 64))
    return folded.to(memory_format=torch.channels_last)


def _digest(text: str, *tensors: torch.Tensor) -> str:
    """Return the digest of a text and of the types, shapes and values of tensors."""
    state = blake2b(text.encode(), digest_size=16)
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


@torch.no_grad()
def _computed(read: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return read(*inputs)
