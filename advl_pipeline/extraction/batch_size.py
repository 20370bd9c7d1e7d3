"""`--batch-size auto`: how many units this machine encodes fastest in one forward pass, tried before the plan.

What was found is recorded with the plan, so that the same command goes on with the same batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import torch
from tqdm import tqdm

from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.sources import Source
from advl_pipeline.teachers.interface import PreparedUnit

SMALLEST, LARGEST = 8, 1024

_FASTER = 1.05
"""A larger batch is taken where it encodes so much more in the same time: it also takes more memory."""

_LOOKED_AT, _TRIED = 64, 8
"""Units that are made ready, and those with most tokens among them, which stand for a batch of any size."""


def with_batch_size(config: ExtractConfig, sources: Sequence[Source]) -> ExtractConfig:
    """Return the configuration with a number of units per forward pass in place of auto.

    Both modalities have the same: the smaller of what was found for each.
    """
    if config.batch_size != "auto":
        return config
    found = {source.modality: _fastest(source) for source in sources}
    told = ", ".join(f"{size} units of {modality}" for modality, size in found.items())
    tqdm.write(f"batch size: {min(found.values())}, as this machine encodes fastest {told} at once", file=sys.stderr)
    return replace(config, batch_size=min(found.values()))


def _fastest(source: Source) -> int:
    num_units = len(source.unit_ids())
    looked_at = np.unique(np.linspace(0, num_units - 1, _LOOKED_AT).astype(np.int64)).tolist()
    if source.modality == "image":
        looked_at = looked_at[:: max(1, len(looked_at) // _TRIED)]
    prepared = source.prepare(looked_at, skip_unreadable=True).prepared
    if not prepared:
        return SMALLEST
    longest = sorted(prepared, key=lambda unit: unit.num_tokens)[-_TRIED:]
    best, best_rate, size = SMALLEST, 0.0, SMALLEST
    while size <= LARGEST:
        try:
            rate = _rate(source, list(islice(cycle(longest), size)))
        except torch.OutOfMemoryError:
            # Half of it did fit; half of that leaves room for units that are longer than those that were tried.
            return max(1, min(best, size // 4))
        if rate < _FASTER * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def _rate(source: Source, units: Sequence[PreparedUnit]) -> float:
    # The first pass of a size also pays for what a device prepares for it.
    for _ in range(2):
        began = time.perf_counter()
        source.tower.encode(units).on_cpu()
        seconds = time.perf_counter() - began
    return len(units) / seconds
