"""Buffer for the rows of one shard during encoding, and the shard's part of its modality's tables.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import AdvlError
from advl_pipeline.cache.commit_records import PlanRecord
from advl_pipeline.cache.layout import ShardPlan, global_spec, token_specs
from advl_pipeline.cache.moments import sums
from advl_pipeline.cache.quantise import clip_to_float16, is_finite, to_float16, to_int8


class ShardBuffer:
    """Rows of one shard; units arrive in any order, each exactly once.

    `tokens` contains the rows of the token arrays: "values", "scales" and the columns stored with them.
    """

    def __init__(self, plan: PlanRecord, modality: str, placement: ShardPlan, shard: int) -> None:
        self.shard = shard
        self.units = placement.units_of(shard)
        self.clipped = 0
        self.quarantined: dict[str, str] = {}
        self._stored = plan.stored_dtype
        self._first_row_N = placement.starts_N[self.units.start : self.units.stop] - shard * placement.shard_rows
        self._length_N = placement.lengths_N[self.units.start : self.units.stop]
        self._filled_N = np.zeros(len(self.units), np.bool_)
        self._stats: dict[str, npt.NDArray[np.float32]] = {}
        rows = int(placement.rows_used_S[shard])
        table = global_spec(modality, plan)
        self._global_ND = np.zeros((len(self.units), *table.shape[1:]), table.dtype)
        self.tokens: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((rows, *spec.shape[1:]), spec.dtype)
            for name, spec in token_specs(modality, plan, placement.num_rows).items()
        }

    def put(
        self,
        unit: int,
        *,
        global_D: npt.NDArray[np.float32],
        values_MD: npt.NDArray[np.float32],
        stats: Mapping[str, float],
        per_token: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Store one unit's features and the columns of its token rows: name -> (M, ...), as planned.

        Raises:
            AdvlError: the teacher gave NaN or infinity, or a number of rows that was not planned.
        """
        slot, where = self._free_slot(unit), f"unit {unit} of shard {self.shard}"
        first, planned, num_rows = int(self._first_row_N[slot]), int(self._length_N[slot]), len(values_MD)
        if "values" in self.tokens and num_rows != planned:
            raise AdvlError(
                "The teacher returned a different number of tokens than it announced.",
                where=where,
                why=f"{num_rows} rows, {planned} planned",
            )
        if not (is_finite(global_D) and is_finite(values_MD)):
            raise AdvlError(
                "The teacher returned features that are NaN or infinite.",
                where=where,
                next_command="try --mixed-precision no",
            )
        self._global_ND[slot] = self._narrow(global_D[None])[0]
        for name, value in stats.items():
            self._stats.setdefault(name, np.zeros(len(self.units), np.float32))[slot] = value
        if "values" in self.tokens and num_rows:
            rows = slice(first, first + num_rows)
            if self._stored == "int8":
                in_range_MD, clipped = clip_to_float16(values_MD)
                self.clipped += clipped
                self.tokens["values"][rows], self.tokens["scales"][rows] = to_int8(in_range_MD)
            else:
                self.tokens["values"][rows] = values_MD if self._stored == "uint8" else self._narrow(values_MD)
            for name in self.tokens.keys() - {"values", "scales"}:
                if name not in per_token or per_token[name].shape != self.tokens[name][rows].shape:
                    raise AdvlError(f"The teacher did not return {name} for each token.", where=where)
                self.tokens[name][rows] = per_token[name]
        # Last: a unit that could not be stored leaves its shard unfilled.
        self._filled_N[slot] = True

    def quarantine(self, unit: int, reason: str) -> None:
        """Leave a unit's rows at zero and list it as unreadable."""
        slot = self._free_slot(unit)
        self.quarantined[str(unit)] = reason
        self._filled_N[slot] = True

    def require_filled(self) -> None:
        """Raise `ValueError` if a unit of the shard is missing."""
        if not self._filled_N.all():
            raise ValueError(f"shard {self.shard} lacks unit {self.units[int(self._filled_N.argmin())]}")

    def staged(self) -> dict[str, npt.NDArray[Any]]:
        """Return the shard's part of the per-unit tables, computed from the stored form."""
        return staged_content(self._global_ND, self.tokens.get("values"), self.tokens.get("scales"), self._stats)

    def _free_slot(self, unit: int) -> int:
        slot = unit - self.units.start
        if not 0 <= slot < len(self.units) or self._filled_N[slot]:
            raise ValueError(f"unit {unit} is not waited for by shard {self.shard}")
        return slot

    def _narrow(self, values_MD: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        # Features from a GPU are already float16.
        if self._stored == "float32" or values_MD.dtype == np.float16:
            return values_MD
        narrow, clipped = to_float16(values_MD)
        self.clipped += clipped
        return narrow


def staged_content(
    global_ND: npt.NDArray[Any],
    values_MD: npt.NDArray[Any] | None,
    scale_M: npt.NDArray[np.float32] | None,
    stats: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, npt.NDArray[Any]]:
    """Return a shard's part of the per-unit tables, computed from the stored form of its features."""
    content: dict[str, npt.NDArray[Any]] = {
        "global": global_ND,
        "stat-norm": np.linalg.norm(global_ND.astype(np.float32), axis=1).astype(np.float32),
        "global_sums": sums(global_ND),
    }
    content |= {f"stat-{name}": values_N for name, values_N in stats.items()}
    if values_MD is not None:
        content["token_sums"] = sums(values_MD, scale_M)
    return content
