"""Data-parallel training of one model: processes start in step, with equal weights, and share each step's batch.

Gradients are summed while the backward pass still computes. Parameters that earlier steps reached are in buckets, the
last of the model first, which is roughly the order of a backward pass. In the last pass of a step, a bucket is sent
as soon as it is complete and all earlier ones are sent. A process sends zeros for parameters that it did not reach,
so all processes send the same buckets in the same order. A parameter that is reached for the first time is summed
after the pass, and joins a bucket from the next step on.

There is one sum per step, over all of its micro-batches. Several backward passes and unequal numbers of micro-batches
therefore need no special care, and two processes give the result of one on the same batch.
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

from advl_pipeline.base.compute import MixedPrecision, num_processes
from advl_pipeline.base.errors import ClusterError, ConfigError

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other, for example while the first one estimates confidences."""

Value = TypeVar("Value")

_SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""Variables that accelerate's launcher sets to shard a model."""


def start_processes(device: str, mixed_precision: MixedPrecision) -> Accelerator:
    """Return the accelerator of this process, in step with the others that a launcher started.

    Args:
        device: of a resolved configuration; each of several processes on GPUs has its own.
        mixed_precision: of a resolved configuration.

    Raises:
        ConfigError: the launcher announces other processes but they are not connected, or it shards models.
    """
    for name, kind in _SHARDED.items():
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise ConfigError(
                f"Sharding a student over processes by {kind} is not supported.",
                where=name,
                next_command="accelerate config without it; --lora-rank and --gradient-checkpointing save memory",
            )
    if "LOCAL_RANK" not in os.environ and torch.device(device).index is not None:
        torch.accelerator.set_device_index(torch.device(device).index)
    accelerator = Accelerator(
        # This also connects processes on CPUs.
        cpu=torch.device(device).type == "cpu",
        mixed_precision=mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    announced = num_processes()
    # accelerate's launcher sets the address of a multi-process run even if it then starts one process.
    alone = "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ
    if announced == accelerator.num_processes and not (alone and accelerator.num_processes == 1):
        return accelerator
    raise ConfigError(
        "Each process would train a separate model into the same folder: the processes are not connected.",
        why=(f"{announced} processes are announced" if announced > 1 else "several processes were asked for")
        + f", and this process is connected to {accelerator.num_processes - 1} others",
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
    """Return the rows of all processes of the group, as specified by `distillation.relational.Gather`.

    Rows are exchanged as bytes: one exchange for their numbers, one for the rows, and one for the gradients.
    """
    num_rows = torch.tensor([len(values[0])], device=values[0].device)
    num_rows_by_process = [torch.empty_like(num_rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(num_rows_by_process, num_rows)
    counts: list[int] = torch.cat(num_rows_by_process).tolist()
    gathered: tuple[torch.Tensor, ...] = _GatheredRows.apply(counts, *values)  # type: ignore[no-untyped-call]
    return gathered


class _GatheredRows(torch.autograd.Function):
    """The rows of all processes; the gradient of a row is the sum of its gradients over the processes.

    The exchanges are the same on every backend. torch's own differentiable `all_gather` differs between NCCL and
    Gloo, so a test on CPUs would not cover the code path of GPUs.
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
    """Give every process the first one's parameters and buffers; separate results may differ in the last bits."""
    if accelerator.num_processes > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, src=0)


def shares_batches() -> bool:
    """Return whether several processes train one model."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def of_first(value: Value) -> Value:
    """Return the first process's value on every process; tensors in it must be on the CPU."""
    values = [value]
    if shares_batches():
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def computed_by_first(compute: Callable[[], Value], accelerator: Accelerator) -> Value:
    """Return the first process's result on every process, because separate results may differ in the last bits.

    Args:
        compute: called only by the first process; tensors in its result must be on the CPU.
    """
    result: Value = of_first(compute() if accelerator.is_main_process else None)  # type: ignore[assignment]
    return result


BUCKET_NUMBERS = 1 << 23
"""Maximum size of a bucket in numbers: 32 MB in fp32, small enough that the first buckets are sent early."""


class GradientSum:
    """Sum of the gradients of parameters over the processes; a no-op for one process.

    Processes enter the context together. It has its own group, so that the loss may exchange tensors in between.
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
        # After an error the other processes may be gone, and closing would wait for them.
        if self._hooks and error is None:
            distributed.destroy_process_group(self._group)

    def begin_last_pass(self) -> None:
        """Announce that the next backward pass is the last of its step."""
        self._missing = [len(bucket) for bucket in self._buckets]

    @torch.no_grad()
    def finish(self, asked: bool) -> bool:
        """Sum the remaining gradients, in place; a parameter that no process reached keeps no gradient.

        Args:
            asked: whether this process should stop.

        Returns:
            Whether any process should stop. A signal may reach only one, and all stop after the same step.
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
            # The order in which parameters were first reached must not determine which are summed together.
            self._buckets = self._cut(sorted(number for bucket in self._buckets for number in bucket))
            self._bucket_of = {number: place for place, bucket in enumerate(self._buckets) for number in bucket}
        return stops

    def _cut(self, numbers: Iterable[int]) -> list[list[int]]:
        """Return buckets with one dtype each, from ascending numbers, the last first."""
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
