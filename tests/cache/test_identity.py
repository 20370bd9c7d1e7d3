"""Settings have one canonical form, and their differences are complete."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.cache.identity import canonical_json, differences, digest

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
