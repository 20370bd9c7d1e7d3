"""Batches on their way to a GPU, one step ahead: copied, and made targets of, beside what the model computes.

A batch is collated into memory that is never paged out, so that the GPU copies it without a thread's help. Copies and
targets have a stream of their own; who takes a batch has its own stream wait for them. On a CPU nothing travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from advl_pipeline.tensors import with_tensors

Batch = TypeVar("Batch")
BatchThere = TypeVar("BatchThere", covariant=True)
"""A batch on the device."""


class Sendable(Protocol[BatchThere]):
    """A batch in memory."""

    def to(self, device: torch.device) -> BatchThere:
        """Return the batch on a device."""
        ...


@dataclass(frozen=True, kw_only=True)
class SentBatches(Generic[Batch]):
    """The micro-batches of a step, of which a GPU's are taken over by `received` before anything reads them."""

    batches: list[Batch]
    arrived: torch.cuda.Event | None = None

    def received(self, device: torch.device) -> list[Batch]:
        """Return the micro-batches; what this thread computes on the device next waits until they are there."""
        if self.arrived is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self.arrived)

            def keep(value: torch.Tensor) -> torch.Tensor:
                # Their memory is the other stream's, which may use it again only after this one has passed them.
                if value.is_cuda:
                    value.record_stream(stream)
                return value

            for batch in self.batches:
                with_tensors(batch, keep)
        return self.batches


def pinned(batch: Batch) -> Batch:
    """Return a batch in memory that is never paged out."""
    return with_tensors(batch, lambda value: value.pin_memory())


def send_ahead(steps: Iterable[Sequence[Sendable[Batch]]], device: torch.device) -> Iterator[SentBatches[Batch]]:
    """Send the micro-batches of each step to a device that is no CPU, on a stream of their own where it is a GPU."""
    if device.type != "cuda":
        for step in steps:
            yield SentBatches(batches=[batch.to(device) for batch in step])
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for step in steps:
        with torch.cuda.stream(stream):
            batches = [batch.to(device) for batch in step]
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        yield SentBatches(batches=batches, arrived=arrived)
