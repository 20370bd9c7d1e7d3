"""Which options make two runs the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_IDENTITY = frozenset(
    {
        *("output", "data_root", "resume", "checkpoint_every", "tensorboard", "disk_cache", "disk_cache_gb"),
        *("live_weights", "verify_caches"),
    }
)
"""Where a run reads and writes, how it is cut into pieces and who looks on, not what it computes.

Weights of live teachers lie anywhere: that they are those of the caches is checked."""


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's plain configuration says about its numbers.

    Options at their default are in it too: another version's default may be another.
    """
    return {key: value for key, value in config.items() if key not in NOT_IDENTITY}
