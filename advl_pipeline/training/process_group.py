"""Several processes that train one model: they are started in step, begin alike and share each step's batch.

Their gradients are added up while the backward pass still computes. Parameters that steps have reached are in
buckets, the last of the model first, which is about the order in which a backward pass comes by them. In the last
pass of a step a bucket is sent as soon as all of it is there and those before it are sent. What a process did not
reach it sends as zeros: all processes send the same buckets in the same order, whatever each of them reached. A
parameter that is reached for the first time is added up after the pass, and is in a bucket from the next step on.

One sum a step, over all of its micro-batches, so that several backward passes and micro-batches of unequal number
need no special care, and two processes compute what one does on the same batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from math import prod
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed, nn
from torch.utils.hooks import RemovableHandle

from advl_pipeline.base.compute import MixedPrecision
from advl_pipeline.base.errors import ClusterError, ConfigError

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: while the first one estimates confidences, say."""

Computed = TypeVar("Computed")

_NUMBERS_OF_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


_SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""What accelerate's launcher sets where a model is to be cut into parts."""


def start_processes(device: str, mixed_precision: MixedPrecision) -> Accelerator:
    """Return the accelerator of this process, in step with the others that a launcher started.

    Args:
        device: of a resolved configuration; of several processes on GPUs each has its own.
        mixed_precision: of a resolved configuration.

    Raises:
        ConfigError: the launcher announces other processes, and they are not in step; or it shards models.
    """
    for name, kind in _SHARDED.items():
        if os.environ.get(name, "false").lower() in ("true", "1"):
            instead = "accelerate config without it; --lora-rank and --gradient-checkpointing save memory"
            what = f"A student is not sharded over processes by {kind}."
            raise ConfigError(what, where=name, next_command=instead)
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
    announcement = f"{announced} processes are announced" if announced > 1 else "several processes were asked for"
    raise ConfigError(
        "The processes are not in step: each would train a model of its own into the same folder.",
        why=f"{announcement}, and this one knows of {accelerator.num_processes}",
        next_command="start them by torchrun --nproc-per-node 2 -m advl_cli, on CPUs as on GPUs",
    )


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Refuse to continue if another process of the group is gone.

    Raises:
        ClusterError: another process ended, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        is_of_group = isinstance(error, distributed.DistError) or "gloo" in reason
        if accelerator.num_processes == 1 or not is_of_group:
            raise
        raise ClusterError("Another process of this training ended, or cannot be reached.", why=reason) from error


def gather_rows(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the rows of all processes of the group, as `distillation.relational.Gather` says.

    They travel together as bytes: one exchange of how many there are, one of the rows, and one of the gradients.
    """
    num_rows = torch.tensor([len(values[0])], device=values[0].device)
    num_rows_by_process = [torch.empty_like(num_rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(num_rows_by_process, num_rows)
    counts: list[int] = torch.cat(num_rows_by_process).tolist()
    gathered: tuple[torch.Tensor, ...] = _GatheredRows.apply(counts, *values)  # type: ignore[no-untyped-call]
    return gathered


class _GatheredRows(torch.autograd.Function):
    """It returns the rows of all processes; a row's gradient is the sum of those that the processes have of it.

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
        ctx.local_rows = slice(first, first + len(values[0]))
        return tuple(
            part.contiguous().view(value.dtype).view(len(joined), *value.shape[1:])
            for part, value in zip(
                torch.split(joined, [value.shape[1] for value in as_bytes], 1), values, strict=True
            )
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        summed: list[torch.Tensor | None] = []
        for gradient, is_needed in zip(gradients, ctx.needs_input_grad[1:], strict=True):
            if is_needed:
                total = gradient.clone(memory_format=torch.contiguous_format)
                distributed.all_reduce(total)
                summed.append(total[ctx.local_rows])
            else:
                summed.append(None)
        return None, *summed


def align_parameters(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the first one's parameters and buffers; computed apart, they may differ in the last bits."""
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, src=0)


def computed_by_first(compute: Callable[[], Computed], accelerator: Accelerator) -> Computed:
    """Return what the first process computes, on every process: computed by each, the last bits might differ.

    Args:
        compute: called by the first process alone; tensors of what it returns must be on the CPU.
    """
    objects = [compute() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        distributed.broadcast_object_list(objects, src=0)
    result: Computed = objects[0]  # type: ignore[assignment]
    return result


BUCKET_NUMBERS = 1 << 23
"""Numbers that are added up at once: 32 MB in fp32, of which the first are on their way early."""


class GradientSum:
    """Adds up the gradients of parameters over the processes; with one process there is nothing to do.

    Processes enter the context together. It has a group of its own, so that what the loss exchanges may come between.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
        self._trained = [value for value in parameters if value.requires_grad]
        self._accelerator = accelerator
        self._buckets: list[list[int]] = []
        self._bucket_of: dict[int, int] = {}
        self._hooks: list[RemovableHandle] = []
        self._missing: list[int] | None = None
        self._sent: list[tuple[distributed.Work, torch.Tensor]] = []

    def __enter__(self) -> Self:
        if self._accelerator.num_processes > 1:
            self._group = distributed.new_group(timeout=PATIENCE)
            self._hooks = [
                value.register_post_accumulate_grad_hook(partial(self._reached, number))  # type: ignore[no-untyped-call]
                for number, value in enumerate(self._trained)
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        # After an error the others may be gone, and closing would wait for them.
        if self._hooks and error is None:
            distributed.destroy_process_group(self._group)

    def begin_last_pass(self) -> None:
        """Say that the backward pass which follows is the last of its step."""
        self._missing = [len(bucket) for bucket in self._buckets]

    @torch.no_grad()
    def finish(self, asked: bool) -> bool:
        """Add up what is not yet, in place; a parameter that no process reached keeps no gradient.

        Args:
            asked: whether this process is to stop.

        Returns:
            Whether any process is to stop: a signal may have come to one alone, and all stop after the same step.
        """
        if self._accelerator.num_processes == 1:
            return asked
        local_flags = [*(value.grad is not None for value in self._trained), asked]
        flags = torch.tensor(local_flags, dtype=torch.uint8, device=self._accelerator.device)
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        while len(self._sent) < len(self._buckets):
            self._send(self._buckets[len(self._sent)])
        *reached, stops = map(bool, flags.tolist())
        new = self._cut(
            number for number, is_reached in enumerate(reached) if is_reached and number not in self._bucket_of
        )
        for bucket in new:
            self._send(bucket)
        self._buckets += new
        for bucket, (work, total) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            values = [self._trained[number] for number in bucket]
            parts = torch.split(total, [value.numel() for value in values])
            for number, value, part in zip(bucket, values, parts, strict=True):
                if reached[number]:
                    if value.grad is None:
                        value.grad = torch.empty_like(value)
                    value.grad.copy_(part.view_as(value.grad))
        self._sent, self._missing = [], None
        if new:
            # Which numbers are added up together must not depend on when they were first reached.
            self._buckets = self._cut(sorted(number for bucket in self._buckets for number in bucket))
            self._bucket_of = {number: place for place, bucket in enumerate(self._buckets) for number in bucket}
        return stops

    def _cut(self, numbers: Iterable[int]) -> list[list[int]]:
        """Return buckets of one type each, of ascending numbers the last first."""
        buckets: list[list[int]] = []
        held = 0
        for number in reversed(list(numbers)):
            value = self._trained[number]
            is_full = held + value.numel() > BUCKET_NUMBERS
            if not buckets or is_full or self._trained[buckets[-1][0]].dtype != value.dtype:
                buckets.append([])
                held = 0
            buckets[-1].append(number)
            held += value.numel()
        return buckets

    def _reached(self, number: int, _: torch.Tensor) -> None:
        if self._missing is None or number not in self._bucket_of:
            return
        self._missing[self._bucket_of[number]] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send(self._buckets[len(self._sent)])

    @torch.no_grad()
    def _send(self, bucket: Sequence[int]) -> None:
        values = [self._trained[number] for number in bucket]
        flat = torch.cat(
            [(torch.zeros_like(value) if value.grad is None else value.grad).reshape(-1) for value in values]
        )
        work = distributed.all_reduce(flat, group=self._group, async_op=True)
        assert work is not None
        self._sent.append((work, flat))
