"""The content of one shard while it is being filled, already in its stored form, and its share of the moments.

Moments are summed over shards in a fixed order, so that every run gives the same bits.

Shapes: N units of the shard, M rows of the shard, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.commit_records import ModalityRecord
from advl_pipeline.cache.layout import ArraySpec
from advl_pipeline.cache.quantise import (
    StoredDtype,
    clip_to_float16,
    from_int8,
    is_finite,
    to_float16,
    to_int8,
    wide_dtype,
)
from advl_pipeline.cache.ragged import Placement
from advl_pipeline.errors import AdvlError

_BLOCK_ROWS = 4096


def sums(values_MD: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return (2, D): the sum and the sum of squares of each column, in float64."""
    total_2D = np.zeros((2, values_MD.shape[1]))
    for first in range(0, len(values_MD), _BLOCK_ROWS):
        block_MD = values_MD[first : first + _BLOCK_ROWS].astype(np.float64)
        total_2D[0] += block_MD.sum(axis=0)
        np.square(block_MD, out=block_MD)
        total_2D[1] += block_MD.sum(axis=0)
    return total_2D


def mean_and_variance(
    total_2D: npt.NDArray[np.float64], *, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Turn the `sums` of all rows into population mean and variance (D,).

    Without any row the mean is 0 and the variance 1, which leaves targets as they are.
    """
    width = total_2D.shape[1]
    if count == 0:
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    mean_D = total_2D[0] / count
    variance_D = np.maximum(total_2D[1] / count - mean_D**2, 0.0)
    return mean_D.astype(np.float32), variance_D.astype(np.float32)


def token_sums(values_MD: npt.NDArray[Any], scale_M: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float64]:
    """Return (2, D): sum and sum of squares of stored token rows; `scale_M` is given where they are int8 codes."""
    if scale_M is None:
        return sums(values_MD)
    total_2D = np.zeros((2, values_MD.shape[1]))
    for first in range(0, len(values_MD), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        total_2D += sums(from_int8(values_MD[block], scale_M[block]))
    return total_2D


def staged_content(
    global_ND: npt.NDArray[Any],
    values_MD: npt.NDArray[Any] | None,
    scale_M: npt.NDArray[np.float32] | None,
    stats: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, npt.NDArray[Any]]:
    """Return what a shard adds to the per-unit tables, computed from the stored form of its features."""
    content: dict[str, npt.NDArray[Any]] = {
        "global": global_ND,
        "stat-norm": np.linalg.norm(global_ND.astype(np.float32), axis=1).astype(np.float32),
        "global_sums": sums(global_ND),
    }
    content |= {f"stat-{name}": values_N for name, values_N in stats.items()}
    if values_MD is not None:
        content["token_sums"] = token_sums(values_MD, scale_M)
    return content


class ShardBuffer:
    """Rows of one shard; units arrive in any order, each exactly once."""

    def __init__(
        self,
        *,
        placement: Placement,
        shard: int,
        shape: ModalityRecord,
        stored: StoredDtype,
        token_specs: Mapping[str, ArraySpec],
    ) -> None:
        self.shard = shard
        self.units = placement.units_of(shard)
        self.clipped = 0
        self.quarantined: dict[str, str] = {}
        self._stored = stored
        self._first_row_N = placement.starts_N[self.units.start : self.units.stop] - shard * placement.shard_rows
        self._length_N = placement.lengths_N[self.units.start : self.units.stop]
        self._filled_N = np.zeros(len(self.units), np.bool_)
        self._stats: dict[str, npt.NDArray[np.float32]] = {}
        rows = int(placement.rows_used_S[shard])
        wide = np.dtype(wide_dtype(stored))
        self._global_ND = np.zeros((len(self.units), shape.global_dim), wide)
        self._tokens: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((rows, *spec.shape[1:]), spec.dtype) for name, spec in token_specs.items()
        }

    def put(
        self,
        unit: int,
        *,
        global_D: npt.NDArray[np.float32],
        values_MD: npt.NDArray[np.float32],
        stats: Mapping[str, float],
        beside: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Store one unit's features, and what stands beside each token row: array -> (M, ...), as the plan has them.

        Raises:
            AdvlError: the teacher gave NaN or infinity, or another number of rows than planned.
        """
        slot = self._free_slot(unit)
        self._require_sound(unit, slot, global_D, values_MD)
        self._global_ND[slot] = self._narrow(global_D[None])[0]
        for name, value in stats.items():
            self._stats.setdefault(name, np.zeros(len(self.units), np.float32))[slot] = value
        if "values" in self._tokens and len(values_MD):
            self._put_tokens(unit, slot, values_MD, beside)
        # Last: a unit that could not be stored leaves its shard unfilled.
        self._filled_N[slot] = True

    def _put_tokens(
        self,
        unit: int,
        slot: int,
        values_MD: npt.NDArray[np.float32],
        beside: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        rows = slice(int(self._first_row_N[slot]), int(self._first_row_N[slot]) + len(values_MD))
        if self._stored == "int8":
            in_range_MD, clipped = clip_to_float16(values_MD)
            self.clipped += clipped
            self._tokens["values"][rows], self._tokens["scales"][rows] = to_int8(in_range_MD)
        else:
            self._tokens["values"][rows] = values_MD if self._stored == "uint8" else self._narrow(values_MD)
        for name in self._tokens.keys() - {"values", "scales"}:
            given, shape = beside.get(name), (len(values_MD), *self._tokens[name].shape[1:])
            if given is None or given.shape != shape:
                raise AdvlError(f"The teacher did not give {name} for each token.", where=f"unit {unit}")
            self._tokens[name][rows] = given

    def quarantine(self, unit: int, reason: str) -> None:
        """Leave a unit's rows at zero and list it as unreadable."""
        slot = self._free_slot(unit)
        self.quarantined[str(unit)] = reason
        self._filled_N[slot] = True

    def require_filled(self) -> None:
        """Raise `ValueError` when a unit of the shard is missing."""
        if not self._filled_N.all():
            raise ValueError(f"shard {self.shard} lacks unit {self.units[int(self._filled_N.argmin())]}")

    def token_rows(self) -> Mapping[str, npt.NDArray[Any]]:
        """Return the rows of the token arrays: "values", "scales" and what stands beside them."""
        return self._tokens

    def staged(self) -> dict[str, npt.NDArray[Any]]:
        """Return what the shard adds to the per-unit tables, computed from the stored form."""
        return staged_content(self._global_ND, self._tokens.get("values"), self._tokens.get("scales"), self._stats)

    def _free_slot(self, unit: int) -> int:
        slot = unit - self.units.start
        if not 0 <= slot < len(self.units) or self._filled_N[slot]:
            raise ValueError(f"unit {unit} is not waited for by shard {self.shard}")
        return slot

    def _require_sound(
        self, unit: int, slot: int, global_D: npt.NDArray[np.float32], values_MD: npt.NDArray[np.float32]
    ) -> None:
        if "values" in self._tokens and len(values_MD) != self._length_N[slot]:
            raise AdvlError(
                "The teacher gave another number of tokens than it announced.",
                where=f"unit {unit}",
                why=f"{len(values_MD)} rows, {int(self._length_N[slot])} planned",
            )
        if not (is_finite(global_D) and is_finite(values_MD)):
            raise AdvlError(
                "The teacher gave features that are not finite numbers.",
                where=f"unit {unit} of shard {self.shard}",
                next_command="try --mixed-precision no",
            )

    def _narrow(self, values_MD: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        # What was computed on a GPU comes halved.
        if self._stored == "float32" or values_MD.dtype == np.float16:
            return values_MD
        narrow, clipped = to_float16(values_MD)
        self.clipped += clipped
        return narrow
