"""The digest of a network's loaded parameters: what makes one set of frozen weights distinct from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def parameter_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the hexadecimal SHA-256 of tensors by name, such as `module.state_dict()` as loaded.

    Hashed over (name, dtype, shape, bytes) in the order of the names, so neither the file format nor the order
    in a file matters. Take it before any cast: the compute dtype is another entry of an identity.
    """
    state_hash = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        state_hash.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
        state_hash.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state_hash.hexdigest()
