"""Checkpoints: one safetensors file each, written atomically, never a pickle.

Keys: `model/<parameter>`, `optimizer/<index>/<state>`, under fp16 `scaler/<state>`, and those of `EarlyStopping`
where a run may end early. The file's metadata has the
step, the stage, and the digest of all of these. Random generators need no state, because every step seeds itself from
(seed, step). A run writes checkpoints on a thread: the loop waits while the state is copied, but not while it is
hashed and written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from advl_pipeline.base.errors import CorruptCache, advise
from advl_pipeline.base.tensors import parameter_digest, save_tensors
from advl_pipeline.runs.results import STAGE_KEY
from advl_pipeline.students.heads import under_present_names


class CheckpointWriter:
    """Writer of a run's checkpoints, one after another on a thread, each atomically.

    The next `save`, or the end of the context, raises the error of a failed write. Both wait for the last write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="advl-checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()
        finally:
            self._thread.shutdown(wait=False)

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        stage: str,
        scaler: torch.amp.GradScaler | None = None,
        more: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Copy the state after `step` optimiser steps of a stage, and start to write it.

        Args:
            scaler: of fp16's losses, None without.
            more: other state, by keys of its own.

        Raises:
            StorageError: the disk was full or failed when the previous state was written.
        """
        self._wait()
        base = _base_weights(model)
        state = dict(more or {})
        state |= {f"model/{key}": value for key, value in model.state_dict().items() if key not in base}
        for index, of_parameter in optimizer.state_dict()["state"].items():
            state |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in of_parameter.items()}
        if scaler is not None:
            state |= {f"scaler/{key}": torch.as_tensor(value) for key, value in scaler.state_dict().items()}
        copied = {key: value.detach().to("cpu", copy=True) for key, value in state.items()}
        self._writing = self._thread.submit(_write, self._path, copied, step=step, stage=stage)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _base_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the frozen weights under low-rank updates by name; a resumed run loads them from its initial weights."""
    named = dict(model.named_parameters(remove_duplicate=False))
    is_updated = any(".lora_" in name for name in named)
    return {name: value for name, value in named.items() if is_updated and not value.requires_grad}


def _write(path: Path, tensors: Mapping[str, torch.Tensor], *, step: int, stage: str) -> None:
    metadata = {"step": str(step), STAGE_KEY: stage}
    save_tensors(path, tensors, metadata={**metadata, "digest": _digest(metadata, tensors)})


def load_checkpoint(path: Path) -> tuple[int, str, dict[str, torch.Tensor]] | None:
    """Return (step, stage, tensors) of a checkpoint, or None if it is missing.

    Raises:
        CorruptCache: the file is damaged, or was not written by a run.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, str(error)) from None
    recorded = metadata.pop("digest", "")
    if metadata.keys() != {"step", STAGE_KEY} or _digest(metadata, tensors) != recorded:
        raise _damaged(path, "its content is not what its digest says")
    return int(metadata["step"]), metadata[STAGE_KEY], tensors


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    place = f"{metadata['step']}\0{metadata[STAGE_KEY]}\0"
    return hashlib.sha256((place + parameter_digest(tensors)).encode()).hexdigest()


def _damaged(path: Path, why: str) -> CorruptCache:
    return CorruptCache(
        "The checkpoint is damaged.",
        where=str(path),
        why=why,
        next_command=advise(["rm", str(path)], note="the run starts over", again=()),
    )


def restore(
    tensors: dict[str, torch.Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Load a checkpoint's tensors; the optimiser only if its stage resumes.

    Args:
        scaler: of fp16's losses, whose scale and growth counter are restored.
    """
    model.load_state_dict(_base_weights(model) | under_present_names(_under("model/", tensors), "heads."))
    if scaler is not None and (kept := _under("scaler/", tensors)):
        scaler.load_state_dict({key: value.item() for key, value in kept.items()})
    if optimizer is None:
        return
    state: dict[int, dict[str, Any]] = {}
    for key, value in _under("optimizer/", tensors).items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
