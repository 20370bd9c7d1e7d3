"""The look-up of units by id: sorted 64-bit prefixes beside unit positions, searched in place.

Shapes: N units, U of them readable, Q ids asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import CorruptCache

ID_BYTES = 16


def ids_to_bytes(ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Turn Q hexadecimal ids of 32 digits into a (Q, 16) uint8 array; raises `ValueError` for any other string."""
    if any(len(unit_id) != 2 * ID_BYTES for unit_id in ids):
        raise ValueError("a unit id has 32 hexadecimal digits")
    return np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(len(ids), ID_BYTES)


def build_index(
    unit_ids_N16: npt.NDArray[np.uint8], readable_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return (prefix_U, unit_U): first 8 bytes of each readable id, big-endian, ascending; the unit's position."""
    prefix_N = _prefixes(unit_ids_N16)
    order = np.argsort(prefix_N, kind="stable")
    unit_U = order[readable_N[order]].astype(np.int64)
    return prefix_N[unit_U].astype("<u8"), unit_U


def look_up(
    wanted_Q16: npt.NDArray[np.uint8],
    unit_ids_N16: npt.NDArray[np.uint8],
    prefix_U: npt.NDArray[np.uint64],
    unit_U: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the position of each wanted id among the units, -1 where it is not there."""
    prefix_Q = _prefixes(wanted_Q16)
    slot_Q = np.searchsorted(prefix_U, prefix_Q)
    slot_Q[slot_Q == len(prefix_U)] = len(prefix_U) - 1
    unit_Q = unit_U[slot_Q]
    if unit_Q.min() < 0 or unit_Q.max() >= len(unit_ids_N16):
        raise CorruptCache("The index of the cache points outside it.")
    same_Q = (unit_ids_N16[unit_Q] == wanted_Q16).all(axis=1)
    for query in np.flatnonzero(~same_Q & (prefix_U[slot_Q] == prefix_Q)):
        # Ids that share 64 bits lie next to one another.
        slot = int(slot_Q[query]) + 1
        while slot < len(prefix_U) and prefix_U[slot] == prefix_Q[query]:
            if (unit_ids_N16[unit_U[slot] : unit_U[slot] + 1] == wanted_Q16[query]).all(axis=1).any():
                unit_Q[query], same_Q[query] = unit_U[slot], True
                break
            slot += 1
    return np.where(same_Q, unit_Q, -1)


class UnitIds(Sequence[str]):
    """The readable units' ids in the order of the store, decoded one by one when asked for."""

    def __init__(self, unit_ids_N16: npt.NDArray[np.uint8], position_U: npt.NDArray[np.int64] | None) -> None:
        self._unit_ids_N16 = unit_ids_N16
        self._position_U = position_U

    def __len__(self) -> int:
        return len(self._unit_ids_N16 if self._position_U is None else self._position_U)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index if self._position_U is None else self._position_U[index]
        unit_id: str = self._unit_ids_N16[position].tobytes().hex()
        return unit_id

    def __iter__(self) -> Iterator[str]:
        return (self[position] for position in range(len(self)))


def _prefixes(ids_Q16: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(ids_Q16[:, :8]).view(">u8")[:, 0].astype(np.uint64)
