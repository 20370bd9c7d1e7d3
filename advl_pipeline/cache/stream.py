"""Streaming a feature store as padded batches: planned order, reads announced ahead, one background thread.

Shapes: B units of a batch, M tokens of the longest of them, D feature width.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from advl_pipeline.cache.order import OrderState, epoch_order, rank_slice
from advl_pipeline.cache.quantise import dequantise
from advl_pipeline.prefetch import Prefetcher

_ROUNDED_TO = 1 << 20


class BufferPool:
    """Hands out arrays whose memory is taken again once nobody holds them, or anything that views them.

    Every array handed out is a view, and a view (a torch tensor made from it included) keeps a reference to the
    memory that it looks at. So memory is free exactly when its reference count says that only the pool holds it.
    """

    def __init__(self) -> None:
        self._buffers: list[npt.NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        # How the interpreter counts what nobody but the list holds differs between versions.
        self._idle_count = self._count(0)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an uninitialised array; whoever gets it may keep it as long as they like."""
        size = math.prod(shape) * dtype.itemsize
        return self._take(size)[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        idle = [number for number in range(len(self._buffers)) if self._count(number) == self._idle_count]
        for number in idle:
            if self._buffers[number].nbytes >= size:
                return self._buffers[number]
        # Too small ones make room: after a few batches all buffers are as large as the largest batch.
        for number in reversed(idle):
            del self._buffers[number]
        self._buffers.append(np.empty(-(-max(1, size) // _ROUNDED_TO) * _ROUNDED_TO, np.uint8))
        return self._buffers[-1]

    def _count(self, number: int) -> int:
        return sys.getrefcount(self._buffers[number])


if TYPE_CHECKING:
    from advl_pipeline.cache.reader import FeatureStore


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureBatch:
    """One batch, zero-padded; what concerns tokens is None where the store has no token features.

    `stored_BMD` is what the store holds. Where that is int8 codes, `scale_BM` are their scales: `to` takes them to a
    device in half the bytes, and `token_BMD` dequantises them there.
    """

    ids: Sequence[str]
    global_BD: torch.Tensor
    stored_BMD: torch.Tensor | None = None
    scale_BM: torch.Tensor | None = None
    mask_BM: torch.Tensor | None = None

    @property
    def token_BMD(self) -> torch.Tensor | None:  # noqa: N802
        """The token features; codes are dequantised to float16 whenever this is asked for."""
        if self.stored_BMD is None or self.scale_BM is None:
            return self.stored_BMD
        return dequantise(self.stored_BMD, self.scale_BM)

    @property
    def num_bytes(self) -> int:
        return self.global_BD.nbytes + (0 if self.stored_BMD is None else self.stored_BMD.nbytes)

    def to(self, device: torch.device | str) -> FeatureBatch:
        """Return the batch on a device."""
        tensors = ("global_BD", "stored_BMD", "scale_BM", "mask_BM")
        moved = {name: tensor.to(device) for name in tensors if (tensor := getattr(self, name)) is not None}
        return replace(self, **moved)


class BatchStream:
    """All units of a store, once per epoch, in batches. Iterating yields what is left of the current epoch.

    Args:
        batch_size: units per batch and rank.
        epoch: the epoch to begin with; `advance_epoch` goes on to the next.
        shuffle: follow `order.epoch_order`, which mixes all units globally; else the order of the store.
        rank: this process's share of every global batch.
        announce_ahead: how many batches ahead of the reader the kernel is told; 0 leaves it to the kernel.
        bytes_in_flight: bound of the batches that are read but not yet taken; 0 reads in the caller's thread.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        tokens: bool | None = None,
        rank: int = 0,
        world_size: int = 1,
        announce_ahead: int = 16,
        bytes_in_flight: int = 64 << 20,
    ) -> None:
        self._store = store
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._tokens = store.has_tokens if tokens is None else tokens
        self._rank = rank
        self._world_size = world_size
        self._announce_ahead = announce_ahead
        self._bytes_in_flight = bytes_in_flight
        self._state = OrderState(epoch=epoch)
        self._buffers = BufferPool()

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands, as plain types."""
        return self._state.to_dict(source=f"{self._store.source}/{self._seed}/{self._shuffle}")

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Go on where another stream over the same cache stood; raises `IdentityMismatch` for another one's state."""
        self._state = OrderState.from_dict(content, source=f"{self._store.source}/{self._seed}/{self._shuffle}")

    def advance_epoch(self) -> None:
        """Begin the next epoch."""
        self._state = OrderState(epoch=self._state.epoch + 1)

    def __len__(self) -> int:
        """Batches left in the current epoch."""
        return -(-(len(self._store) - self._state.consumed) // (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[FeatureBatch]:
        plan = self._plan()
        self._store.begin_epoch()
        with ExitStack() as stack:
            source: Iterable[FeatureBatch] = self._read(plan)
            if self._bytes_in_flight:
                source = stack.enter_context(
                    Prefetcher(
                        lambda: self._read(plan),
                        limit=self._bytes_in_flight,
                        weigh=lambda batch: batch.num_bytes,
                        name="advl-cache-reader",
                    )
                )
            yield from map(self._taken, source)

    def _taken(self, batch: FeatureBatch) -> FeatureBatch:
        consumed = min(len(self._store), self._state.consumed + self._batch_size * self._world_size)
        self._state = OrderState(epoch=self._state.epoch, consumed=consumed)
        return batch

    def _plan(self) -> list[npt.NDArray[np.int64]]:
        size = len(self._store)
        order = epoch_order(size, seed=self._seed, epoch=self._state.epoch) if self._shuffle else np.arange(size)
        return rank_slice(
            order[self._state.consumed :],
            rank=self._rank,
            world_size=self._world_size,
            batch_size=self._batch_size,
        )

    def _read(self, plan: list[npt.NDArray[np.int64]]) -> Iterator[FeatureBatch]:
        announced: deque[npt.NDArray[np.int64]] = deque()
        upcoming = iter(plan)
        for batch in plan:
            while self._announce_ahead and len(announced) <= self._announce_ahead:
                following = next(upcoming, None)
                if following is None:
                    break
                self._store.announce_positions(self._store.readable_positions(following))
                announced.append(following)
            if announced:
                announced.popleft()
            yield read_batch(self._store, batch, tokens=self._tokens, buffers=self._buffers)


def read_batch(
    store: FeatureStore, order_B: npt.NDArray[np.int64], *, tokens: bool, buffers: BufferPool
) -> FeatureBatch:
    """Read and pad one batch; `order_B` counts readable units in the order of the store."""
    position_B = store.readable_positions(order_B)
    ids = store.ids_at(position_B)
    global_BD = torch.from_numpy(store.global_rows(position_B))
    if not tokens:
        return FeatureBatch(ids=ids, global_BD=global_BD)
    stored_BMD, length_B = store.padded_tokens(position_B, buffers.allocate)
    scale_BM = store.padded_scales(position_B)
    return FeatureBatch(
        ids=ids,
        global_BD=global_BD,
        stored_BMD=torch.from_numpy(stored_BMD),
        scale_BM=None if scale_BM is None else torch.from_numpy(scale_BM),
        mask_BM=torch.from_numpy(np.arange(stored_BMD.shape[1]) < length_B[:, None]),
    )
