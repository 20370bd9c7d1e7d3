"""Several processes that train one model: they are started in step, share each step's batch and add up gradients.

Gradients are added up once in an optimiser step, after its last micro-batch. So parameters that a batch does not
reach, several backward passes and micro-batches of unequal number need no special care, and two processes compute
what one does on the same batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed, nn
from torch.distributed.nn.functional import all_gather

from advl_pipeline.compute import MixedPrecision
from advl_pipeline.errors import ConfigError

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: while the first one estimates confidences, say."""

CHUNK = 1 << 24
"""Numbers that are added up at once: 64 MB in fp32."""

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


def gather_rows(values_X: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes of the group, as `distillation.relational.Gather` says."""
    own = torch.tensor([len(values_X)], device=values_X.device)
    found = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, own)
    counts = [int(count) for count in found]
    padded = nn.functional.pad(
        values_X.to(torch.uint8) if values_X.dtype == torch.bool else values_X,
        (0, 0) * (values_X.dim() - 1) + (0, max(counts) - len(values_X)),
    ).contiguous()
    if values_X.requires_grad or (torch.is_grad_enabled() and values_X.is_floating_point()):
        parts = all_gather(padded)  # type: ignore[no-untyped-call]
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
    joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return joined.to(values_X.dtype)


def align_parameters(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the first one's parameters and buffers; computed apart, they may differ in the last bits."""
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, src=0)


@torch.no_grad()
def add_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Add up the processes' gradients in place; a parameter that no process reached keeps none."""
    if accelerator.num_processes == 1:
        return
    trained = [value for value in parameters if value.requires_grad]
    reached = torch.tensor(
        [value.grad is not None for value in trained], dtype=torch.uint8, device=accelerator.device
    )
    distributed.all_reduce(reached, op=distributed.ReduceOp.MAX)
    chunk: list[nn.Parameter] = []
    for value, is_reached in zip(trained, reached.tolist(), strict=True):
        if not is_reached:
            continue
        if value.grad is None:
            value.grad = torch.zeros_like(value)
        if chunk and (sum(map(torch.numel, chunk)) + value.numel() > CHUNK or chunk[0].dtype != value.dtype):
            _add_chunk(chunk)
            chunk = []
        chunk.append(value)
    if chunk:
        _add_chunk(chunk)


def _add_chunk(chunk: list[nn.Parameter]) -> None:
    gradients = [value.grad for value in chunk if value.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    totals = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, total in zip(gradients, totals, strict=True):
        gradient.copy_(total.view_as(gradient))
