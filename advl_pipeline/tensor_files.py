"""Named tensors on disk: safetensors files that are either whole or absent, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from advl_pipeline.atomic import writing


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, from any device, beside their place and rename the file into it.

    Raises:
        StorageError: the disk is full or failed; the part that was written is removed.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path, SafetensorError):
            save_file(on_cpu, partial, metadata=None if metadata is None else dict(metadata))
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
