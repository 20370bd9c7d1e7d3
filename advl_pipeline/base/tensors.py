"""Named tensors: atomically written safetensors files, never pickles, with their digest; and tensor records.

A record is a dataclass that contains tensors, or mappings and tuples of tensors and of records.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from advl_pipeline.base.atomic import give_usual_mode, remove_left, writing


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, from any device, in a temporary folder next to the path and rename the file into place.

    The library writes to a randomly named file, which a killed process leaves behind; the folder keeps it findable.
    Tied tensors, which the library refuses, are written under each of their names.

    Raises:
        StorageError: the disk is full or failed; the partial file is removed.
    """
    on_cpu: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        on_cpu[name] = value.clone() if memory in written else value
        written.add(memory)
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path, SafetensorError):
            remove_left(partial)
            partial.mkdir()
            save_file(on_cpu, partial / path.name, metadata=None if metadata is None else dict(metadata))
            give_usual_mode(partial / path.name)
            (partial / path.name).replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a file: safetensors, or torch's format with only tensors unpickled."""
    is_safe = path.suffix == ".safetensors"
    tensors: dict[str, torch.Tensor] = (
        load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    )
    return tensors


def parameter_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the hexadecimal SHA-256 of tensors by name, such as `module.state_dict()` as loaded.

    It hashes (name, dtype, shape, bytes) in name order, so it does not depend on the file format or the order in a
    file. Take it before any cast: the compute dtype is a separate entry of an identity.
    """
    state_hash = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        state_hash.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
        state_hash.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state_hash.hexdigest()


Value = TypeVar("Value")


def with_tensors(value: Value, change: Callable[[torch.Tensor], torch.Tensor]) -> Value:
    """Return a value with `change` applied to all its tensors, in tuples, mappings and dataclass fields."""
    made: Any = value
    if isinstance(value, torch.Tensor):
        made = change(value)
    elif isinstance(value, Mapping):
        made = {key: with_tensors(entry, change) for key, entry in value.items()}
    elif isinstance(value, tuple):
        made = tuple(with_tensors(entry, change) for entry in value)
    elif is_dataclass(value) and not isinstance(value, type):
        values = {item.name: with_tensors(getattr(value, item.name), change) for item in fields(value) if item.init}
        made = replace(value, **values)
    return cast(Value, made)


def moved(value: Value, device: torch.device) -> Value:
    """Return a value with all its tensors moved to a device, as found by `with_tensors`."""
    # An asynchronous copy to the host could be read before it completes.
    return with_tensors(value, lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"))
