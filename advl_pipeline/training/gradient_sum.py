"""The gradients of several processes are added up while the backward pass still computes.

Parameters that steps have reached lie in buckets, the last of the model first, which is about the order in which a
backward pass comes by them. In the last pass of a step a bucket is sent as soon as all of it is there and those
before it are sent. What a process did not reach it sends as zeros: all processes send the same buckets in the same
order, whatever each of them reached. A parameter that is reached for the first time is added up after the pass, and
lies in a bucket from the next step on.

One sum a step, over all of its micro-batches, so that several backward passes and micro-batches of unequal number
need no special care, and two processes compute what one does on the same batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.utils.hooks import RemovableHandle

from advl_pipeline.training.process_group import PATIENCE

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

    def finish(self, asked: bool) -> bool:
        """Add up what is not yet, in place; a parameter that no process reached keeps no gradient.

        Args:
            asked: whether this process is to stop.

        Returns:
            Whether any process is to stop: a signal may have come to one alone, and all stop after the same step.
        """
        if self._accelerator.num_processes == 1:
            return asked
        told = [*(value.grad is not None for value in self._trained), asked]
        flags = torch.tensor(told, dtype=torch.uint8, device=self._accelerator.device)
        distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        while len(self._sent) < len(self._buckets):
            self._send(self._buckets[len(self._sent)])
        *reached, stops = map(bool, flags.tolist())
        new = self._cut(number for number, is_reached in enumerate(reached) if is_reached and number not in self)
        for bucket in new:
            self._send(bucket)
        for bucket, (work, total) in zip([*self._buckets, *new], self._sent, strict=True):
            work.wait()
            self._take(bucket, total, reached)
        self._sent, self._missing = [], None
        if new:
            known = [number for bucket in (*self._buckets, *new) for number in bucket]
            self._buckets = self._cut(sorted(known))
            self._bucket_of = {number: place for place, bucket in enumerate(self._buckets) for number in bucket}
        return stops

    def __contains__(self, number: int) -> bool:
        return number in self._bucket_of

    def _cut(self, numbers: Iterable[int]) -> list[list[int]]:
        """Return buckets of one type each, of ascending numbers the last first."""
        found: list[list[int]] = []
        held = 0
        for number in reversed(list(numbers)):
            value = self._trained[number]
            if not found or held + value.numel() > BUCKET_NUMBERS or self._trained[found[-1][0]].dtype != value.dtype:
                found.append([])
                held = 0
            found[-1].append(number)
            held += value.numel()
        return found

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

    @torch.no_grad()
    def _take(self, bucket: Sequence[int], total: torch.Tensor, reached: Sequence[bool]) -> None:
        values = [self._trained[number] for number in bucket]
        for number, value, part in zip(
            bucket, values, torch.split(total, [value.numel() for value in values]), strict=True
        ):
            if not reached[number]:
                continue
            if value.grad is None:
                value.grad = torch.empty_like(value)
            value.grad.copy_(part.view_as(value.grad))
