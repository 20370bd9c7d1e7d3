"""The ragged token rows of a modality: which rows a unit has, collected or padded, checked to lie within its shard.

Shapes: N units, Q units asked for, M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.arrays import MappedArray
from advl_pipeline.cache.layout import DTYPES
from advl_pipeline.cache.quantise import from_int8
from advl_pipeline.errors import ConfigError, CorruptCache

Rows = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]


class TokenRows:
    """Arrays with one row per token: "values", "scales", what stands beside them; none where there are no tokens."""

    def __init__(
        self,
        arrays: Mapping[str, MappedArray],
        *,
        starts_N: npt.NDArray[np.int64],
        lengths_N: npt.NDArray[np.int32],
        where: str,
    ) -> None:
        self.arrays = arrays
        self._starts_N = starts_N
        self._lengths_N = lengths_N
        self._where = where

    def bounds(self, positions_Q: Positions) -> tuple[Positions, Positions]:
        """Return first row and number of rows of units.

        Raises:
            CorruptCache: a unit's rows lie outside its shard.
        """
        start_Q, length_Q = self._starts_N[positions_Q], self._lengths_N[positions_Q].astype(np.int64)
        if len(start_Q) and self.arrays:
            spec = self.arrays["values"].spec
            shard_end_Q = (start_Q // spec.shard_rows + 1) * spec.shard_rows
            outside = start_Q.min() < 0 or length_Q.min() < 0
            if outside or ((start_Q + length_Q) > np.minimum(shard_end_Q, spec.shape[0])).any():
                raise CorruptCache("A unit's rows lie outside its shard.", where=self._where)
        return start_Q, length_Q

    def lengths(self, positions_Q: Positions) -> npt.NDArray[np.int32]:
        """Return how many rows units have, (Q,)."""
        return self._lengths_N[positions_Q]

    def collect(self, name: str, positions_Q: Positions) -> Rows:
        """Return the rows of units one after another; of one unit a view."""
        return self._joined(name, *self.bounds(positions_Q))

    def values(self, positions_Q: Positions) -> Rows:
        """Return the features of units one after another, (M, D); stored int8 codes come as float16."""
        values_MD, scale_M = self.stored(positions_Q)
        return values_MD if scale_M is None else from_int8(values_MD, scale_M)

    def stored(self, positions_Q: Positions) -> tuple[Rows, npt.NDArray[np.float32] | None]:
        """Return stored rows of units one after another, (M, D), and the scales of those that are codes, (M,)."""
        start_Q, length_Q = self.bounds(positions_Q)
        scale_M = self._joined("scales", start_Q, length_Q) if "scales" in self.arrays else None
        return self._joined("values", start_Q, length_Q), scale_M

    def padded(self, positions_Q: Positions) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Return stored rows zero-padded to the longest unit, (Q, M, D)."""
        array = self._array("values")
        start_Q, length_Q = self.bounds(positions_Q)
        longest = int(length_Q.max(initial=0))
        padded_QMD = np.empty((len(positions_Q), longest, array.spec.shape[1]), DTYPES[array.spec.dtype])
        rows = array.stretches(start_Q, length_Q)
        for target_MD, rows_MD, length in zip(padded_QMD, rows, length_Q.tolist(), strict=True):
            target_MD[:length] = rows_MD
            if length < longest:
                target_MD[length:] = 0
        return padded_QMD, self.lengths(positions_Q)

    def padded_scales(self, positions_Q: Positions) -> npt.NDArray[np.float32] | None:
        """Return the scales of the rows of `padded`, (Q, M), 0 at the padding; None where they are no codes."""
        if "scales" not in self.arrays:
            return None
        start_Q, length_Q = self.bounds(positions_Q)
        is_row_QM = np.arange(length_Q.max(initial=0)) < length_Q[:, None]
        scale_QM = np.zeros(is_row_QM.shape, np.float32)
        scale_QM[is_row_QM] = self._joined("scales", start_Q, length_Q)
        return scale_QM

    def _joined(self, name: str, start_Q: Positions, length_Q: Positions) -> Rows:
        array = self._array(name)
        parts = array.stretches(start_Q, length_Q)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *array.spec.shape[1:]), DTYPES[array.spec.dtype])

    def _array(self, name: str) -> MappedArray:
        if not self.arrays:
            raise ConfigError(
                "This cache holds no token features of this modality.",
                where=self._where,
                next_command="extract again with --image-tokens boxes or grid",
            )
        return self.arrays[name]


def are_spans(rows_M2: Rows) -> bool:
    """Whether all rows are [start, end) with 0 <= start <= end."""
    return bool((rows_M2[:, 0] >= 0).all() and (np.diff(rows_M2, axis=1) >= 0).all())
