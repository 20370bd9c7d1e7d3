"""Which units share a forward pass: a pure function of the shard, so that a resumed run computes the same numbers.

Units of one shard are sorted by length, so a batch holds units of like length and pads little. Batches never cross
shards, and long ones come first, so that too large a batch shows itself at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import ConfigError


def plan_batches(units: range, lengths_N: npt.NDArray[np.int32], *, batch_size: int) -> list[list[int]]:
    """Cut the units of a shard into batches.

    Args:
        units: positions of the shard's units.
        lengths_N: token rows of every unit of the modality.
        batch_size: units per batch.
    """
    if batch_size < 1:
        raise ConfigError(f"A batch cannot hold {batch_size} units.", where="--batch-size")
    order = np.argsort(-lengths_N[units.start : units.stop].astype(np.int64), kind="stable") + units.start
    return [order[first : first + batch_size].tolist() for first in range(0, len(order), batch_size)]


def padded_share(batches: list[list[int]], lengths_N: npt.NDArray[np.int32]) -> float:
    """Return which share of the token rows that the teacher computes is padding."""
    padded = sum(int(lengths_N[batch].max()) * len(batch) for batch in batches)
    used = sum(int(lengths_N[batch].sum()) for batch in batches)
    return 1.0 - used / padded if padded else 0.0
