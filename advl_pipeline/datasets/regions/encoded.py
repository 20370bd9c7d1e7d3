"""Arrays inside text: base64 of raw little-endian numbers, as TSV and VL-BERT's JSON hold them."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.problems import Malformed


def decode_floats(value: Any, *, rows: int, what: str) -> npt.NDArray[np.float32]:
    """Decode base64 of float32 into (rows, columns).

    Raises:
        Malformed: not base64, or not a whole number of rows.
    """
    if not isinstance(value, (str, bytes)):
        raise Malformed(f"{what} are not base64 text")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what} are not base64") from None
    if rows <= 0 or len(data) % (4 * rows):
        raise Malformed(f"{what} of {len(data)} bytes are not {rows} rows of float32")
    return np.frombuffer(data, dtype="<f4").reshape(rows, -1)


def positive(value: Any, what: str) -> int:
    """Return a number that must be a positive whole one, written as text or as a number.

    Raises:
        Malformed: it is not.
    """
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number <= 0 or isinstance(value, bool):
        raise Malformed(f"{what} is {value!r}")
    return number
