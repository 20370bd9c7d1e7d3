"""Mean and variance of stored rows, from sums accumulated block by block in float64.

Shapes: N units, M rows, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.quantise import from_int8

_BLOCK_ROWS = 4096


def sums(values_MD: npt.NDArray[Any], scale_M: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float64]:
    """Return (2, D): the sum and the sum of squares of each column, in float64.

    Args:
        scale_M: scales of the rows if they are int8 codes.
    """
    total_2D = np.zeros((2, values_MD.shape[1]))
    for first in range(0, len(values_MD), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        rows_MD = values_MD[block] if scale_M is None else from_int8(values_MD[block], scale_M[block])
        block_MD = rows_MD.astype(np.float64)
        total_2D[0] += block_MD.sum(axis=0)
        np.square(block_MD, out=block_MD)
        total_2D[1] += block_MD.sum(axis=0)
    return total_2D


def moments_of(
    sums_of: Mapping[str, npt.NDArray[np.float64]],
    readable_N: npt.NDArray[np.bool_],
    lengths_N: npt.NDArray[np.int32],
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the population mean and variance (D,) of the readable units' features, by names such as "token_mean".

    Without rows the mean is 0 and the variance 1, which leaves targets unchanged.

    Args:
        sums_of: "global" and, with token features, "token" -> the `sums` of all rows.
        readable_N: False for units that could not be read.
        lengths_N: token rows of each unit.
    """
    counts = {"global": int(readable_N.sum()), "token": int(lengths_N[readable_N].sum(dtype=np.int64))}
    moments: dict[str, npt.NDArray[np.float32]] = {}
    for kind, total_2D in sums_of.items():
        mean_D, variance_D = np.zeros(total_2D.shape[1]), np.ones(total_2D.shape[1])
        if count := counts[kind]:
            mean_D = total_2D[0] / count
            variance_D = np.maximum(total_2D[1] / count - mean_D**2, 0.0)
        moments |= {f"{kind}_mean": mean_D.astype(np.float32), f"{kind}_variance": variance_D.astype(np.float32)}
    return moments
