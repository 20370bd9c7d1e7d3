"""Streaming a list gives what `json` gives, and every broken document is an error with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.datasets.json_stream import JsonItems, read_text
from advl_pipeline.errors import DatasetError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def stream(text: str) -> tuple[list[Any], dict[str, Any]]:
    items = JsonItems(text, path=Path("f.json"), key="items", dataset="vqa-v2")
    found = []
    for offset, item in items:
        assert 0 <= offset < len(text)
        found.append(item)
    return found, items.fields


@given(
    before=st.dictionaries(st.text(max_size=3), values, max_size=2),
    items=st.lists(values, max_size=5),
    after=st.dictionaries(st.text(max_size=3), values, max_size=2),
    indent=st.sampled_from([None, 1]),
)
def test_same_items_as_json(
    before: dict[str, Any], items: list[Any], after: dict[str, Any], indent: int | None
) -> None:
    document = {**before, "items": items, **{key: value for key, value in after.items() if key not in before}}
    found, fields = stream(json.dumps(document, indent=indent))
    assert found == items
    assert fields == {key: value for key, value in document.items() if key != "items"}
    assert stream(json.dumps(items, indent=indent)) == (items, {})


@given(items=st.lists(values, min_size=1, max_size=4), share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_an_error(items: list[Any], share: float) -> None:
    text = json.dumps({"items": items})
    with pytest.raises(DatasetError):
        stream(text[: int(share * len(text))])


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('{"items": [1,\n2', 2, "cut off"),
        ('{"items": [1,\n"ab', 2, "cut off"),
        ('{"items": [1,\n]}', 2, "comma"),
        ('{"items": [1\n2]}', 2, "expected ','"),
        ('{"other": 1\n}', 2, "no list 'items'"),
        ('{"items": {}}', 1, "no list 'items'"),
        ("\n\n5", 3, "neither"),
        ("", 1, "empty"),
        ('{"items": []}\nx', 2, "follows the end"),
    ],
)
def test_broken_documents_name_their_line(text: str, line: int, why: str) -> None:
    with pytest.raises(DatasetError) as caught:
        stream(text)
    assert caught.value.where == f"f.json:{line}"
    assert why in caught.value.why


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(b'{"items": [\n"\xff"]}')
    with pytest.raises(DatasetError) as caught:
        read_text(file, dataset="vqa-v2")
    assert caught.value.where == f"{file}:2"


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises(DatasetError):
        stream('{"items": [' + "[" * 100_000)
