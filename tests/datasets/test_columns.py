"""The column store gives back what was put in, once per content, whatever happens to it in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.datasets.columns import Columns, StringColumn, open_columns


@given(strings=st.lists(st.text(st.characters(exclude_categories=[])), max_size=8))
def test_strings_come_back(strings: list[str]) -> None:
    column = StringColumn(StringColumn.encode("x", strings), "x")
    assert list(column) == strings
    assert column[1:] == strings[1:]
    with pytest.raises(IndexError):
        column[len(strings)]


def builder(calls: list[int]) -> Callable[[], Columns]:
    def build() -> Columns:
        calls.append(1)
        return {"n": np.arange(5), "none": np.zeros(0, dtype=np.uint8), **StringColumn.encode("s", ["a", "b"])}

    return build


def test_built_once_per_key_and_mapped(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(3):
        columns = open_columns(tmp_path, {"file": "abc"}, builder(calls))
        assert columns["n"].tolist() == [0, 1, 2, 3, 4]
        assert isinstance(columns["n"], np.memmap)
        assert len(columns["none"]) == 0
    open_columns(tmp_path, {"file": "abd"}, builder(calls))
    assert len(calls) == 2
    assert not list(tmp_path.glob("*.draft"))


@pytest.mark.parametrize("damage", ["missing column", "short column", "no record", "broken record"])
def test_a_damaged_index_is_built_again(tmp_path: Path, damage: str) -> None:
    calls: list[int] = []
    open_columns(tmp_path, {"file": "abc"}, builder(calls))
    (home,) = tmp_path.iterdir()
    if damage == "missing column":
        (home / "n.npy").unlink()
    elif damage == "short column":
        (home / "n.npy").write_bytes((home / "n.npy").read_bytes()[:-3])
    elif damage == "no record":
        (home / "columns.json").unlink()
    else:
        (home / "columns.json").write_text("{")
    assert open_columns(tmp_path, {"file": "abc"}, builder(calls))["n"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2
