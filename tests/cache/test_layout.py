"""Units are placed in shards without overlap, and are found by id if they are readable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.arrays import build_index, ids_to_bytes, look_up
from advl_pipeline.cache.layout import place


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
