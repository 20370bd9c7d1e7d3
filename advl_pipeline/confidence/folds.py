"""Folds for cross-fitting: a pure function of the group names and a seed, whatever the order of the examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import ConfigError


def assign_folds(groups: Sequence[str], *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of every example, (N,) in [0, number of folds).

    Examples of one group share a fold. Groups, in the order of a hash of their name and the seed, go to the fold
    with the fewest examples so far. With fewer groups than `folds` every group is a fold of its own.

    Args:
        groups: name of each example's group.
        folds: folds wanted, at least 2.
        seed: another seed gives other folds.
    """
    if folds < 2:
        raise ConfigError("Cross-fitting needs at least two folds.", why=f"got {folds}")
    sizes = Counter(groups)
    loads = [0] * min(folds, len(sizes))
    fold_of: dict[str, int] = {}
    for group in sorted(sizes, key=lambda name: (_hash(name, seed), name)):
        fold = loads.index(min(loads))
        fold_of[group] = fold
        loads[fold] += sizes[group]
    return np.array([fold_of[group] for group in groups], dtype=np.int64)


def _hash(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
