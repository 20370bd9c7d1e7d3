"""Token buckets equal the original sampler, keep their bounds, and leave little padding."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import ASSETS

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.training.batch_order import token_batches


def test_equal_to_the_original_sampler() -> None:
    case: dict[str, Any] = json.loads((ASSETS / "uniter_data" / "token_bucket_sampler.json").read_text())
    batches = token_batches(
        case["lens"],
        max_tokens=case["batch_size"],
        bucket_size=case["bucket_size"],
        seed=case["seed"],
        multiple=case["size_multiple"],
    )
    assert batches == case["batches_keep"]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=200),
    bucket_size=st.integers(8, 64),
    seed=st.integers(0, 5),
)
def test_every_item_once_and_no_batch_over_the_bound(lengths: list[int], bucket_size: int, seed: int) -> None:
    batches = token_batches(lengths, max_tokens=1000, bucket_size=bucket_size, seed=seed)
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))
    assert all(max(lengths[item] for item in batch) * len(batch) <= 1000 for batch in batches)


def test_a_group_that_cannot_fit_is_an_error() -> None:
    with pytest.raises(ConfigError, match="longer than a batch"):
        token_batches([500] * 8, max_tokens=1000, bucket_size=8, seed=0)
