"""Several processes that train one model: they are started in step, begin alike and share each step's batch.

What they add up of it is in `gradient_sum.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import prod
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed, nn

from advl_pipeline.compute import MixedPrecision
from advl_pipeline.errors import ClusterError, ConfigError, again

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: while the first one estimates confidences, say."""

Told = TypeVar("Told")

_NUMBERS_OF_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def start_processes(device: str, mixed_precision: MixedPrecision) -> Accelerator:
    """Return the accelerator of this process, in step with the others that a launcher started.

    Args:
        device: of a resolved configuration; of several processes on GPUs each has its own.
        mixed_precision: of a resolved configuration.

    Raises:
        ConfigError: the launcher announces other processes, and they are not in step.
    """
    if "LOCAL_RANK" not in os.environ and torch.device(device).index is not None:
        torch.accelerator.set_device_index(torch.device(device).index)
    accelerator = Accelerator(
        # Told so, it also puts processes on CPUs in step.
        cpu=torch.device(device).type == "cpu",
        mixed_precision=mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    announced = max(int(os.environ.get(name, "1")) for name in _NUMBERS_OF_PROCESSES)
    # accelerate's launcher names a meeting point for several processes even where it then starts one.
    alone = "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ
    if announced == accelerator.num_processes and not (alone and accelerator.num_processes == 1):
        return accelerator
    told = f"{announced} processes are announced" if announced > 1 else "several processes were asked for"
    raise ConfigError(
        "The processes are not in step: each would train a model of its own into the same folder.",
        why=f"{told}, and this one knows of {accelerator.num_processes}",
        next_command="start them by torchrun --nproc-per-node 2 -m advl_cli, on CPUs as on GPUs",
    )


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Say it in words where another process of the group is gone.

    Raises:
        ClusterError: as said.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        is_of_group = isinstance(error, distributed.DistError) or "gloo" in said
        if accelerator.num_processes == 1 or not is_of_group:
            raise
        raise ClusterError(
            "Another process of this training ended, or cannot be reached.",
            why=said,
            next_command=again("mend what the other process says, then give the same command again: it resumes"),
        ) from error


def gather_rows(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the rows of all processes of the group, as `distillation.relational.Gather` says.

    They travel together as bytes: one exchange of how many there are, one of the rows, and one of the gradients.
    """
    own = torch.tensor([len(values[0])], device=values[0].device)
    found = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, own)
    counts: list[int] = torch.cat(found).tolist()
    gathered: tuple[torch.Tensor, ...] = _GatheredRows.apply(counts, *values)  # type: ignore[no-untyped-call]
    return gathered


class _GatheredRows(torch.autograd.Function):
    """The rows of all processes; a gradient is the sum of those that the processes have of a row.

    The same exchanges on every backend: torch's own differentiable `all_gather` has one way for NCCL and another for
    Gloo, so that what a test on CPUs sees would not be what GPUs do.
    """

    @staticmethod
    def forward(ctx: Any, counts: list[int], *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = [value.detach().reshape(len(value), prod(value.shape[1:])).contiguous() for value in values]
        as_bytes = [value.view(torch.uint8) for value in rows]
        packed = nn.functional.pad(torch.cat(as_bytes, 1), (0, 0, 0, max(counts) - len(values[0])))
        parts = [torch.empty_like(packed) for _ in counts]
        distributed.all_gather(parts, packed)
        joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        first = sum(counts[: distributed.get_rank()])
        ctx.own = slice(first, first + len(values[0]))
        return tuple(
            part.contiguous().view(value.dtype).view(len(joined), *value.shape[1:])
            for part, value in zip(
                torch.split(joined, [value.shape[1] for value in as_bytes], 1), values, strict=True
            )
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found: list[torch.Tensor | None] = []
        for gradient, is_needed in zip(gradients, ctx.needs_input_grad[1:], strict=True):
            if is_needed:
                total = gradient.clone(memory_format=torch.contiguous_format)
                distributed.all_reduce(total)
                found.append(total[ctx.own])
            else:
                found.append(None)
        return None, *found


def align_parameters(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the first one's parameters and buffers; computed apart, they may differ in the last bits."""
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, src=0)


def told_by_first(find: Callable[[], Told], accelerator: Accelerator) -> Told:
    """Return what the first process finds, on every process: computed by each, it might differ in the last bits.

    Args:
        find: called by the first process alone; tensors of what it returns must be on the CPU.
    """
    found = [find() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        distributed.broadcast_object_list(found, src=0)
    told: Told = found[0]  # type: ignore[assignment]
    return told
