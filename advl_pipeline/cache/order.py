"""Streaming order: a pure function of (seed, epoch, world size), every item once per epoch.

The order of an epoch is a pseudo-random permutation of all items (Fisher-Yates by numpy's PCG64), so items are mixed
globally, not within blocks. Ranks take contiguous slices of each global batch's worth of the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import ConfigError, IdentityMismatch


def epoch_order(num_items: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the permutation of range(num_items) that epoch number `epoch` follows."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(num_items).astype(np.int64)


def rank_slice(
    order: npt.NDArray[np.int64], *, rank: int, world_size: int, batch_size: int
) -> list[npt.NDArray[np.int64]]:
    """Return the batches of one rank: global batches of world_size * batch_size items, cut into contiguous shares.

    Together the ranks see every item of the order once, whatever the world size; the last shares may be short or
    empty, and every rank has the same number of batches.
    """
    if not 0 <= rank < world_size or batch_size < 1:
        raise ConfigError(f"Rank {rank} of {world_size} with batches of {batch_size} makes no sense.")
    step = world_size * batch_size
    return [
        order[first + rank * batch_size : min(first + (rank + 1) * batch_size, first + step)]
        for first in range(0, len(order), step)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderState:
    """Where a stream stands: its epoch, and how many items of the epoch all ranks together have consumed."""

    epoch: int = 0
    consumed: int = 0

    def to_dict(self, *, source: str) -> dict[str, Any]:
        """Return plain types for a checkpoint; `source` identifies what the order is over."""
        return {"epoch": self.epoch, "consumed": self.consumed, "source": source}

    @staticmethod
    def from_dict(content: Mapping[str, Any], *, source: str) -> OrderState:
        """Read a state back.

        Raises:
            IdentityMismatch: it belongs to another cache or dataset.
        """
        if content["source"] != source:
            raise IdentityMismatch(
                "The state of the data stream belongs to another source.",
                why=f"it was saved over {content['source']}, this is {source}",
                next_command="resume with the same caches, dataset and subset, or start a new run",
            )
        return OrderState(epoch=int(content["epoch"]), consumed=int(content["consumed"]))
