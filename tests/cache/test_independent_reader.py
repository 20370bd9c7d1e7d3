"""A reader written after `docs/cache-format.md` alone, with numpy and json, reads what ours reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_extraction import tiny_extract

from advl_pipeline.cache.reader import open_cache


def read_array(root: Path, name: str) -> np.ndarray:
    """Read a sharded array by the Zarr v3 specification, chunk by chunk."""
    meta = json.loads((root / name / "zarr.json").read_text())
    shape = meta["shape"]
    shard_rows = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
    codec = meta["codecs"][0]
    assert codec["name"] == "sharding_indexed"
    assert codec["configuration"]["index_location"] == "end"
    inner = codec["configuration"]["chunk_shape"]
    dtype = np.dtype(meta["data_type"]).newbyteorder("<")
    chunks_per_shard = shard_rows // inner[0]
    result = np.zeros(shape, dtype)
    for shard in range(-(-shape[0] // shard_rows)):
        raw = (root / name / "c" / str(shard) / "/".join(["0"] * (len(shape) - 1))).read_bytes()
        index = np.frombuffer(raw[-chunks_per_shard * 16 - 4 : -4], "<u8").reshape(-1, 2)
        for number, (offset, length) in enumerate(index.tolist()):
            first = shard * shard_rows + number * inner[0]
            if offset == 2**64 - 1 or first >= shape[0]:
                continue
            content = raw[offset : offset + length]
            chunk = np.frombuffer(content, dtype).reshape(inner)
            result[first : first + inner[0]] = chunk[: shape[0] - first]
    return result


def read_cache(root: Path, modality: str) -> dict[str, dict[str, Any]]:
    complete = json.loads((root / "records/complete.json").read_text())
    arrays = {
        name: read_array(root, f"{modality}/{name}")
        for name in ("unit_id", "global", "tokens/starts", "tokens/lengths", "tokens/values")
    }
    beside = [name for name in ("char_spans", "kept") if (root / modality / "tokens" / name).exists()]
    units: dict[str, dict[str, Any]] = {}
    for number, raw_id in enumerate(arrays["unit_id"]):
        unit_id = bytes(raw_id).hex()
        if unit_id in complete["quarantined"][modality]:
            continue
        first = arrays["tokens/starts"][number]
        rows = slice(first, first + arrays["tokens/lengths"][number])
        values = arrays["tokens/values"][rows]
        if values.dtype == np.int8:
            scales = read_array(root, f"{modality}/tokens/scales")[rows]
            values = (values.astype(np.float32) * scales[:, None]).astype(np.float16)
        columns = {name: read_array(root, f"{modality}/tokens/{name}")[rows] for name in beside}
        units[unit_id] = {"global": arrays["global"][number], "tokens": values, "columns": columns}
    return units


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float16"},
        {"dtype": "int8", "select_texts": 0.5},
    ],
    ids=str,
)
def test_independent_reader_agrees(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "cache", **changes)
    cache = open_cache(tmp_path / "cache")
    for modality, store in cache.stores().items():
        units = read_cache(tmp_path / "cache", modality)
        assert sorted(units) == sorted(store.ids)
        for unit_id, features in units.items():
            np.testing.assert_array_equal(store.global_features([unit_id])[0], features["global"])
            np.testing.assert_array_equal(store.token_features([unit_id])[0], features["tokens"])
            for name, rows in features["columns"].items():
                np.testing.assert_array_equal(store.token_columns([unit_id])[name], rows)
