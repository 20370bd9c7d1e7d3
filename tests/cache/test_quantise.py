"""Features are rounded, clipped and dequantised to the bit, and what is not finite is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.cache.quantise import from_int8, is_finite, to_float16, to_int8


@given(st.integers(0, 2**32 - 1), st.floats(1e-9, 515.9), st.integers(1, 700))
def test_int8_is_dequantised_to_the_bit(seed: int, largest: float, num_rows: int) -> None:
    generator = np.random.default_rng(seed)
    codes_MD = generator.integers(-127, 128, (num_rows, 400)).astype(np.int8)
    scale_M = (generator.random(num_rows) * largest).astype(np.float32)
    codes_MD.flags.writeable = False
    expected_MD = (codes_MD.astype(np.float32) * scale_M[:, None]).astype(np.float16)
    np.testing.assert_array_equal(from_int8(codes_MD, scale_M).view(np.uint16), expected_MD.view(np.uint16))


@given(st.integers(0, 2**32 - 1), st.floats(-9.0, 5.5))
def test_values_are_rounded_to_the_nearest_even(seed: int, magnitude: float) -> None:
    values_MD = (np.random.default_rng(seed).standard_normal((7, 300)) * 10.0**magnitude).astype(np.float32)
    expected_MD = np.clip(values_MD, -65504.0, 65504.0).astype(np.float16)
    np.testing.assert_array_equal(to_float16(values_MD)[0].view(np.uint16), expected_MD.view(np.uint16))


def test_rows_of_zeros_and_large_values() -> None:
    codes_MD, scale_M = to_int8(np.zeros((2, 4), np.float32))
    assert not from_int8(codes_MD, scale_M).any()
    narrow, clipped = to_float16(np.array([[1e6, -1e6, 65504.0, 1.5]], np.float32))
    assert clipped == 2
    assert narrow.tolist() == [[65504.0, -65504.0, 65504.0, 1.5]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_finiteness(value: float) -> None:
    large = np.full((4, 4), 3e38, np.float32)
    assert is_finite(large)
    large[1, 2] = value
    assert not is_finite(large)
