"""Texts longer than a model takes are read through overlapping windows; nothing is ever cut.

Every token's feature comes from the window in which it has most context on its poorer side; the unit's global
feature is the mean of the windows' global features, weighted by the tokens each one owns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, stop) are read together; of these, [keep_start, keep_stop) are owned by this window."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def plan_windows(num_tokens: int, *, capacity: int, overlap: int) -> tuple[Window, ...]:
    """Cover `num_tokens` tokens with windows of at most `capacity` tokens.

    Neighbours share at least `overlap` tokens and are split in the middle of what they share; the last window
    reaches back so that it is full too. One window when all tokens fit, also for none.

    Args:
        num_tokens: content tokens of one text, special tokens not counted.
        capacity: most content tokens in a window, larger than `overlap`.
        overlap: fewest tokens that neighbouring windows share.
    """
    if not 0 <= overlap < capacity:
        raise ValueError(f"overlap {overlap} must be smaller than capacity {capacity}")
    if num_tokens <= capacity:
        return (Window(0, num_tokens, 0, num_tokens),)
    stride = capacity - overlap
    starts = [*range(0, num_tokens - capacity, stride), num_tokens - capacity]
    cuts = [0]
    cuts += [(later + earlier + capacity) // 2 for earlier, later in itertools.pairwise(starts)]
    cuts.append(num_tokens)
    return tuple(Window(start, start + capacity, cuts[index], cuts[index + 1]) for index, start in enumerate(starts))
