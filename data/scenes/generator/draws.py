"""Random draws that are equal on every machine and in every library version: SHA-256 of a name and a counter.

Each draw has a unique name (seed, split, scene, purpose), so adding a draw in one place changes nothing elsewhere,
and workers need no shared state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

_WORD = 8


class Draws:
    """An endless stream of draws, determined by its name."""

    def __init__(self, *name: str | int) -> None:
        self._key = "\0".join(map(str, name)).encode()
        self._words = self._stream()

    def _stream(self) -> Iterator[int]:
        counter = 0
        while True:
            block = hashlib.sha256(self._key + counter.to_bytes(_WORD, "big")).digest()
            for start in range(0, len(block), _WORD):
                yield int.from_bytes(block[start : start + _WORD], "big")
            counter += 1

    def below(self, bound: int) -> int:
        """Draw from 0 .. bound - 1 (the bias of the 64-bit multiplication is below 2**-50 for all our bounds)."""
        return (next(self._words) * bound) >> (8 * _WORD)

    def between(self, low: int, high: int) -> int:
        """Draw from low .. high, inclusive."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        """Draw one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in random order (Fisher-Yates)."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.below(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed
