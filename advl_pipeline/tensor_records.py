"""Records of tensors: dataclasses, and the mappings and tuples of tensors and of records that they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

Record = TypeVar("Record")


def with_tensors(record: Record, change: Callable[[torch.Tensor], torch.Tensor]) -> Record:
    """Return a record with what `change` makes of each of its tensors; everything else stays."""

    def changed(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return change(value)
        if isinstance(value, Mapping):
            return {key: changed(entry) for key, entry in value.items()}
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        return with_tensors(value, change) if is_dataclass(value) and not isinstance(value, type) else value

    values = {item.name: changed(getattr(record, item.name)) for item in fields(record) if item.init}  # type: ignore[arg-type]
    return replace(record, **values)  # type: ignore[type-var]


def moved(record: Record, device: torch.device) -> Record:
    """Return a record with every tensor on a device."""
    # A copy to the host that nobody waits for would be read before it is there.
    return with_tensors(record, lambda value: value.to(device, non_blocking=device.type != "cpu"))
