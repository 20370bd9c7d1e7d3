"""Placement of ragged units into shards: a pure function of how many token rows each unit has.

Shapes: N units, S shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where each unit's rows lie.

    Unit u is rows starts_N[u] to starts_N[u] + lengths_N[u] of the flat values. Shard k holds units
    first_unit_S1[k] to first_unit_S1[k + 1], in rows k * shard_rows onwards; rows_used_S[k] of its rows are taken,
    and the next unit would not have fitted. A unit without tokens still takes one row, which it does not point at.
    """

    shard_rows: int
    starts_N: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int32]
    first_unit_S1: npt.NDArray[np.int64]
    rows_used_S: npt.NDArray[np.int64]

    @property
    def num_units(self) -> int:
        return len(self.lengths_N)

    @property
    def num_shards(self) -> int:
        return len(self.rows_used_S)

    @property
    def num_rows(self) -> int:
        """Rows of the flat values: all shards but the last are full-sized."""
        return (self.num_shards - 1) * self.shard_rows + int(self.rows_used_S[-1])

    def units_of(self, shard: int) -> range:
        """Positions of the units that a shard holds."""
        return range(int(self.first_unit_S1[shard]), int(self.first_unit_S1[shard + 1]))


def place(lengths_N: npt.NDArray[np.int32], *, shard_rows: int) -> Placement:
    """Fill shards with whole units, in order.

    Raises:
        ConfigError: no units, a negative length, or a unit longer than a shard.
    """
    lengths_N = np.ascontiguousarray(lengths_N, dtype=np.int32)
    if len(lengths_N) == 0:
        raise ConfigError("There are no units to place.")
    if int(lengths_N.min()) < 0:
        raise ConfigError("A unit cannot have a negative number of tokens.")
    longest = int(lengths_N.argmax())
    if shard_rows < max(1, int(lengths_N[longest])):
        raise ConfigError(
            f"A unit has {int(lengths_N[longest])} token rows, more than a shard of {shard_rows} rows holds.",
            where=f"unit {longest}",
            next_command="give a larger --shard-rows",
        )
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(lengths_N, 1), dtype=np.int64)])
    starts_N = np.empty(len(lengths_N), np.int64)
    first_unit: list[int] = [0]
    rows_used: list[int] = []
    while first_unit[-1] < len(lengths_N):
        first = first_unit[-1]
        after = int(np.searchsorted(ends, ends[first] + shard_rows, side="right")) - 1
        starts_N[first:after] = len(rows_used) * shard_rows + (ends[first:after] - ends[first])
        rows_used.append(int(ends[after] - ends[first]))
        first_unit.append(after)
    return Placement(
        shard_rows=shard_rows,
        starts_N=starts_N,
        lengths_N=lengths_N,
        first_unit_S1=np.asarray(first_unit, np.int64),
        rows_used_S=np.asarray(rows_used, np.int64),
    )
