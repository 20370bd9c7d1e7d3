"""An index gives back what was put in, once per content, whatever happens to its file in between."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from advl_pipeline.datasets.arrow_file import open_index_file, record_batch


def builder(calls: list[int]) -> Callable[[], Any]:
    def build() -> Any:
        calls.append(1)
        ids = pa.array(["p", "q", "r"], pa.large_string())
        names = pa.array(["b", "a", "b"], pa.large_string()).dictionary_encode()
        return record_batch(
            {"n": np.arange(3), "name": names, "words": [["x", "y"], [], ["z"]], "id": ids},
            {"kind": "test"},
        )

    return build


def test_built_once_per_key_mapped_and_sent_as_its_path(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(3):
        file = open_index_file(tmp_path, {"file": "abc"}, builder(calls))
        for arrow_file in (file, pickle.loads(pickle.dumps(file))):
            assert arrow_file.numbers("n").tolist() == [0, 1, 2]
            assert (arrow_file.numbers("name").tolist(), arrow_file.texts("name").to_pylist()) == (
                [0, 1, 0],
                ["b", "a"],
            )
            assert [arrow_file.lists("words", row) for row in range(3)] == [["x", "y"], [], ["z"]]
            assert arrow_file.facts == {"kind": "test"}
    assert file.is_in("id", ["q", "s"]).tolist() == [False, True, False]
    assert file.is_in("name", ["b"]).tolist() == [True, False, True]
    # Numbers are views of the file: nothing was copied that could be written to.
    assert not file.numbers("n").flags.writeable
    open_index_file(tmp_path, {"file": "abd"}, builder(calls))
    assert len(calls) == 2
    assert not list(tmp_path.glob("*.draft"))
