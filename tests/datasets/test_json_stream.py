"""Streaming a list gives what `json` gives, and every broken document is an error with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.row_files import json_items

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream") / "f.json"


def stream(file: Path, text: str) -> list[Any]:
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    entries = list(json_items(file, "items"))
    assert [line for line, _ in entries] == sorted(line for line, _ in entries)
    return [item for _, item in entries]


@settings(max_examples=40)
@given(
    before=st.dictionaries(st.text(max_size=3), values, max_size=2),
    items=st.lists(values, max_size=5),
    after=st.dictionaries(st.text(max_size=3), values, max_size=2),
    indent=st.sampled_from([None, 1]),
)
def test_same_items_as_json(
    file: Path, before: dict[str, Any], items: list[Any], after: dict[str, Any], indent: int | None
) -> None:
    document = {**before, "items": items, **{key: value for key, value in after.items() if key not in before}}
    assert stream(file, json.dumps(document, indent=indent)) == items
    assert stream(file, json.dumps(items, indent=indent)) == items


@settings(max_examples=40)
@given(items=st.lists(values, min_size=1, max_size=4), share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_an_error(file: Path, items: list[Any], share: float) -> None:
    text = json.dumps({"items": items})
    with pytest.raises(DatasetError):
        stream(file, text[: int(share * len(text))])


def test_broken_documents_name_their_line(file: Path) -> None:
    for text, line, why in (
        ('{"items": [1,\n2', 2, "cut off"),
        ('{"items": [1,\n"ab', 2, "cut off"),
        ('{"items": [1,\n]}', 2, "Expecting value"),
        ('{"items": [1\n2]}', 2, "expected ','"),
        ('{"other": 1\n}', 2, "no list 'items'"),
        ('{"items": {}}', 1, "no list 'items'"),
        ("\n\n5", 3, "expected '[' or '{'"),
        ("5", 1, "no list: expected '[' or '{'"),
        ("{}", 1, "no list 'items'"),
        ("items", 1, "not JSON"),
        ("", 1, "empty"),
        ('{"items": []}\nx', 2, "follows the end"),
        ('{"items": [\n"\udcff"]}', 2, "not UTF-8"),
    ):
        with pytest.raises(DatasetError) as caught:
            stream(file, text)
        assert caught.value.where == f"{file}:{line}"
        assert why in caught.value.why


def test_deep_nesting_is_an_error(file: Path) -> None:
    with pytest.raises(DatasetError):
        stream(file, '{"items": [' + "[" * 100_000)
