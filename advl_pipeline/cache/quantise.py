"""Conversion of float32 features to the stored dtype and back, range-checked.

Shapes: M rows, D columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

StoredDtype = Literal["float16", "float32", "int8", "uint8"]
"""Dtype of stored token rows; int8 codes have one scale per row, uint8 values are pixels."""

FLOAT16_MAX = 65504.0
INT8_MAX = 127
_BLOCK_VALUES = 1 << 18
"""Values dequantised at a time: their products stay in a core's cache."""


def wide_dtype(stored: StoredDtype) -> Literal["float16", "float32"]:
    """Return the dtype of the global features that goes with a dtype of token rows."""
    return "float32" if stored == "float32" else "float16"


def to_float16(values_MD: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float16], int]:
    """Round to float16 and clip values beyond its range; return also the number of clipped values."""
    in_range_MD, clipped = clip_to_float16(values_MD)
    # NumPy rounds in software and is ten times slower.
    return as_tensor(in_range_MD).half().numpy(), clipped


def clip_to_float16(values_MD: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Clip to the range of float16; return also the number of clipped values."""
    clipped = int(np.count_nonzero(np.abs(values_MD) > FLOAT16_MAX))
    return (np.clip(values_MD, -FLOAT16_MAX, FLOAT16_MAX) if clipped else values_MD), clipped


def to_int8(values_MD: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise each row symmetrically; return codes (M, D) and scales (M,) with values = codes * scales.

    A row of zeros has scale 0.
    """
    peak_M = np.abs(values_MD).max(axis=1)
    scale_M = (peak_M / np.float32(INT8_MAX)).astype(np.float32)
    divisor_M = np.where(scale_M > 0, scale_M, np.float32(1))
    codes_MD = np.clip(np.rint(values_MD / divisor_M[:, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    return codes_MD, scale_M


def from_int8(codes_MD: npt.NDArray[np.int8], scale_M: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return the float16 values of codes, as `dequantise`; computed by NumPy if torch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        with np.errstate(over="ignore"):
            return (codes_MD * scale_M[:, None]).astype(np.float16)

    values_MD = np.empty(codes_MD.shape, np.float16)
    block_rows = max(1, _BLOCK_VALUES // codes_MD.shape[1])
    for first in range(0, len(codes_MD), block_rows):
        block = slice(first, first + block_rows)
        torch.from_numpy(values_MD[block]).copy_(dequantise(as_tensor(codes_MD[block]), as_tensor(scale_M[block])))
    return values_MD


def dequantise(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return float16 values (..., D) of codes (..., D) and scales (...): float32 products, rounded half to even."""
    return codes.float().mul_(scale[..., None]).half()


def as_tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor over the same memory, or over a copy if the memory is read-only, such as a mapped file."""
    import torch  # Imported here: inspecting a cache needs no torch.

    return torch.from_numpy(values if values.flags.writeable else values.copy())


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Return whether no value is NaN or infinite; if all are finite, without a temporary of the same size."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(values, dtype=np.float32))) or bool(np.isfinite(values).all())
