"""Character spans of token rows.

Shapes: M token rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import CorruptCache


def are_spans(rows_M2: npt.NDArray[Any]) -> bool:
    """Whether all rows are [start, end) with 0 <= start <= end."""
    return bool((rows_M2[:, 0] >= 0).all() and (np.diff(rows_M2, axis=1) >= 0).all())


def require_spans(rows_M2: npt.NDArray[Any], *, where: str, next_command: str) -> npt.NDArray[np.int32]:
    """Return the rows; raises `CorruptCache` if any is no span."""
    if not are_spans(rows_M2):
        raise CorruptCache("The character spans of a cache are no spans.", where=where, next_command=next_command)
    return rows_M2
