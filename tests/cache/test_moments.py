"""Mean and variance of a teacher's features are those of the readable units, however they were added up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.cache.moments import moments_of, sums
from advl_pipeline.cache.quantise import from_int8, to_int8


@settings(max_examples=20)
@given(st.integers(1, 9000), st.integers(0, 9000), st.integers(0, 2**32 - 1))
def test_sums_of_parts_give_the_moments_of_the_whole(num_rows: int, cut: int, seed: int) -> None:
    rows_MD = np.random.default_rng(seed).normal(3.0, 2.0, (num_rows, 2)).astype(np.float32)
    total_2D = sums(rows_MD[:cut]) + sums(rows_MD[cut:])
    moments = moments_of({"global": total_2D}, np.ones(num_rows, np.bool_), np.zeros(num_rows, np.int32))
    np.testing.assert_allclose(moments["global_mean"], rows_MD.mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(
        moments["global_variance"], rows_MD.var(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-8
    )


def test_codes_of_eight_bits_are_added_up_as_they_will_be_read() -> None:
    codes_MD, scale_M = to_int8(np.random.default_rng(0).standard_normal((50, 3), np.float32))
    np.testing.assert_array_equal(sums(codes_MD, scale_M), sums(from_int8(codes_MD, scale_M)))


def test_units_that_could_not_be_read_do_not_count() -> None:
    # The rows of such a unit are zeros, which add nothing to the sums.
    rows_ND = np.array([[2.0], [0.0], [4.0]], np.float32)
    tokens_MD = np.array([[1.0], [0.0], [0.0], [5.0]], np.float32)
    moments = moments_of(
        {"global": sums(rows_ND), "token": sums(tokens_MD)},
        np.array([True, False, True]),
        np.array([1, 2, 1], np.int32),
    )
    assert moments["global_mean"] == pytest.approx([3.0])
    assert moments["global_variance"] == pytest.approx([1.0])
    assert moments["token_mean"] == pytest.approx([3.0])
    assert moments["token_variance"] == pytest.approx([4.0])


def test_without_rows_targets_stay_as_they_are() -> None:
    moments = moments_of({"token": np.zeros((2, 3))}, np.array([False]), np.array([4], np.int32))
    assert moments["token_mean"].tolist() == [0, 0, 0]
    assert moments["token_variance"].tolist() == [1, 1, 1]
