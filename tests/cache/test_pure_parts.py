"""Properties of identity, placement, index, quantisation and moments."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.arrays import build_index, ids_to_bytes, look_up
from advl_pipeline.cache.identity import canonical_json, differences, digest
from advl_pipeline.cache.layout import place
from advl_pipeline.cache.quantise import from_int8, is_finite, to_float16, to_int8

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
settings_dicts = st.dictionaries(st.text(), plain, max_size=5)


CONFUSABLE: list[Any] = [
    *(None, "null", "None", True, 1, 1.0, "1", "1.0", "true", False, 0, 0.0, -0.0, -1, "0", "", " ", "False"),
    *([], [[]], [{}], {}, {"": []}, {"": {}}, [1], ["1"], [1.0], [True], [1, None], [None, 1], {"0": 1}, {"": 1}),
    *({"a": {"b": 1}}, {"a.b": 1}, {"a": 1, "b": 1}, {"a": 1, "b ": 1}, {"a": {"b": None}}, {"a": {"": {"b": 1}}}),
]
"""A careless canonical form takes some of these for one another."""


def test_settings_that_look_alike_are_told_apart() -> None:
    for left, right in itertools.combinations(CONFUSABLE, 2):
        for wrap in (lambda value: {"a": value}, lambda value: {"a": [value]}, lambda value: {"": {"a": value}}):
            assert digest(wrap(left)) != digest(wrap(right)), (left, right)
            assert differences(wrap(left), wrap(right)), (left, right)
    assert canonical_json({"a": (1, ("b",))}) == canonical_json({"a": [1, ["b"]]})


@pytest.mark.parametrize("value", [{"a": float("nan")}, {1: "a"}, {"a": {1, 2}}, {"a": np.float32(1)}, {"a": b"x"}])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)


@given(settings_dicts, settings_dicts)
def test_the_canonical_form_and_differences_are_complete(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert canonical_json(json.loads(canonical_json(left))) == canonical_json(left)
    assert canonical_json(dict(reversed(left.items()))) == canonical_json(left)
    rows = differences(left, right)
    assert rows == tuple((path, found, expected) for path, expected, found in differences(right, left))
    assert (rows == ()) == (digest(left) == digest(right))
    assert differences(left, right | left, partial=True) == differences(left, left) == ()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(20, 64))
def test_placement_holds_the_contract(lengths: list[int], shard_rows: int) -> None:
    lengths_N = np.array(lengths, np.int32)
    placement = place(lengths_N, shard_rows=shard_rows)
    taken = np.zeros(placement.num_rows, int)
    assert placement.first_unit_S1[0] == 0
    assert placement.first_unit_S1[-1] == len(lengths)
    for shard in range(placement.num_shards):
        units = placement.units_of(shard)
        assert len(units)
        for unit in units:
            start, length = int(placement.starts_N[unit]), int(lengths_N[unit])
            assert shard * shard_rows <= start
            assert start + length <= (shard + 1) * shard_rows
            taken[start : start + max(1, length)] += 1
        # Less slack than the next unit would need.
        if units.stop < len(lengths):
            assert placement.rows_used_S[shard] + max(1, lengths[units.stop]) > shard_rows
    assert taken.max() == 1
    assert taken.sum() == placement.rows_used_S.sum()


@pytest.mark.parametrize("lengths", [[], [-1], [65]])
def test_impossible_placements_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ConfigError):
        place(np.array(lengths, np.int32), shard_rows=64)


RAW_IDS = st.binary(min_size=16, max_size=16) | st.builds(
    lambda prefix, rest: bytes([prefix]) * 8 + bytes([rest]) * 8, st.integers(0, 2), st.integers(0, 9)
)
"""Some share the prefix that they are looked up by."""


@settings(max_examples=40)
@given(st.lists(RAW_IDS, min_size=1, max_size=60, unique=True), st.data())
def test_look_up_finds_what_is_readable(ids: list[bytes], data: st.DataObject) -> None:
    unit_ids_N16 = ids_to_bytes([item.hex() for item in ids])
    readable = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    readable[0] |= not any(readable)
    prefix_U, unit_U = build_index(unit_ids_N16, np.array(readable))
    wanted = data.draw(st.lists(st.sampled_from(ids) | RAW_IDS, min_size=1, max_size=20))
    found = look_up(ids_to_bytes([item.hex() for item in wanted]), unit_ids_N16, prefix_U, unit_U)
    place_of = {item: number for number, item in enumerate(ids) if readable[number]}
    assert found.tolist() == [place_of.get(item, -1) for item in wanted]


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
