"""A shard is the same in whatever order its units arrive, and is not written before it has them all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.base.errors import AdvlError
from advl_pipeline.cache.commit_records import ModalityRecord, PlanRecord
from advl_pipeline.cache.layout import place
from advl_pipeline.cache.quantise import StoredDtype
from advl_pipeline.cache.shard_buffer import ShardBuffer

GLOBAL, TOKEN, ROWS = 3, 4, 8
LENGTHS = (3, 0, 2, 1, 5, 8, 1)
"""Token rows of each unit: the first four fill shard 0, whose last row is free."""


def buffer(stored_dtype: StoredDtype = "float32", *, spans: bool = False) -> ShardBuffer:
    shape = ModalityRecord(num_units=len(LENGTHS), global_dim=GLOBAL, token_dim=TOKEN, spans=spans)
    plan = PlanRecord(
        identity_sha256="", stored_dtype=stored_dtype, shard_rows=ROWS, modalities={"text": shape}, files={}
    )
    return ShardBuffer(plan, "text", place(np.array(LENGTHS, np.int32), shard_rows=ROWS), 0)


def features(unit: int, num_rows: int | None = None) -> dict[str, Any]:
    generator = np.random.default_rng(unit)
    rows = LENGTHS[unit] if num_rows is None else num_rows
    return {
        "global_D": generator.standard_normal(GLOBAL, np.float32),
        "values_MD": generator.standard_normal((rows, TOKEN), np.float32),
        "stats": {"margin": float(unit)},
        "per_token": {},
    }


def content(filled: ShardBuffer) -> dict[str, npt.NDArray[Any]]:
    filled.require_filled()
    return {**filled.tokens, **filled.staged()}


@given(st.permutations(range(4)), st.sampled_from(["float32", "float16", "int8"]))
def test_the_order_of_units_does_not_change_a_shard(order: list[int], stored_dtype: StoredDtype) -> None:
    in_order, shuffled = buffer(stored_dtype), buffer(stored_dtype)
    for unit in range(4):
        in_order.put(unit, **features(unit))
    for unit in order:
        shuffled.put(unit, **features(unit))
    expected, found = content(in_order), content(shuffled)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    # A unit without tokens occupies a row, which stays at zero.
    np.testing.assert_array_equal(expected["values"][3], 0)
    np.testing.assert_array_equal(expected["stat-margin"], [0, 1, 2, 3])


def test_a_unit_is_stored_once_and_in_its_own_shard() -> None:
    shard = buffer()
    shard.put(2, **features(2))
    shard.quarantine(0, "no such picture")
    for unit in (2, 0, 4, -1):
        with pytest.raises(ValueError, match="not waited for by shard 0"):
            shard.put(unit, **features(unit % len(LENGTHS)))
    with pytest.raises(ValueError, match="shard 0 lacks unit 1"):
        shard.require_filled()
    for unit in (1, 3):
        shard.put(unit, **features(unit))
    shard.require_filled()
    assert shard.quarantined == {"0": "no such picture"}
    assert not shard.staged()["global"][0].any()


def test_what_a_teacher_did_not_announce_leaves_its_unit_to_be_filled() -> None:
    shard = buffer(spans=True)
    spans = {"char_spans": np.zeros((3, 2), np.int32)}
    not_finite = {**features(0), "per_token": spans, "global_D": np.array([0, np.inf, 0], np.float32)}
    short = {**features(0), "per_token": {"char_spans": spans["char_spans"][:2]}}
    for wrong, message in (
        (features(0, num_rows=2), "different number of tokens"),
        (not_finite, "NaN or infinite"),
        (features(0), "did not return char_spans"),
        (short, "did not return char_spans"),
    ):
        with pytest.raises(AdvlError, match=message) as caught:
            shard.put(0, **wrong)
        assert caught.value.where == "unit 0 of shard 0"
    with pytest.raises(ValueError, match="lacks unit 0"):
        shard.require_filled()
    shard.put(0, **{**features(0), "per_token": spans})


def test_values_beyond_the_range_of_float16_are_clipped_and_counted() -> None:
    shard = buffer("float16")
    shard.put(3, **{**features(3), "values_MD": np.array([[1e5, -1e6, 1.5, 0]], np.float32)})
    assert shard.clipped == 2
    assert shard.tokens["values"][6].tolist() == [65504, -65504, 1.5, 0]
