"""A cache made to harm is refused before anything is allocated or read by its sizes."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from objects import flipped, forge, reseal
from tiny_extraction import tiny_extract

from advl_pipeline.base.errors import AdvlError, CorruptCache
from advl_pipeline.cache.commit_records import COMPLETE_RECORD, PLAN_RECORD
from advl_pipeline.cache.layout import single_shard
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import render_json, safe_path
from advl_pipeline.cache.verify import verify_cache

MOMENTS = ("mean", "variance")


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Whatever would allocate by a forged size fails at once instead of filling the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def forge_array(cache: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the rows of an array that lies in one shard, and make every record agree."""
    meta = json.loads((cache / name / "zarr.json").read_text())
    path = single_shard(name, tuple(meta["shape"]), meta["data_type"]).shard_path(0)
    content = bytearray((cache / path).read_bytes())
    rows = np.frombuffer(content, meta["data_type"], count=math.prod(meta["shape"]))
    change(rows.reshape(meta["shape"]))
    forge(cache, {path: bytes(content)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text/tokens/starts", -5),
        ("text/tokens/lengths", 2**30),
        ("text/index/unit", 2**50),
        ("text/index/unit", -7),
    ],
)
def test_positions_that_overrun_are_refused(cache_path: Path, name: str, value: int) -> None:
    # The last unit is spared: where it ends is compared with the shapes of the arrays at once.
    forge_array(cache_path, name, lambda rows: rows.__setitem__(slice(None, -1), value))
    store = open_cache(cache_path).text
    with pytest.raises(CorruptCache):
        store.token_features(list(store.ids))
    assert not verify_cache(cache_path).is_sound
    forge_array(cache_path, name, lambda rows: rows.__setitem__(slice(None), value))
    if name.startswith("text/tokens"):
        with pytest.raises(CorruptCache):
            open_cache(cache_path)
    assert not verify_cache(cache_path).is_sound


def test_units_that_overlap_are_named(cache_path: Path) -> None:
    forge_array(cache_path, "text/tokens/starts", lambda rows: rows.__setitem__(1, rows[0]))
    assert "text/tokens/starts" in verify_cache(cache_path).findings


@pytest.mark.parametrize("span", [(-1, 3), (5, 2), (0, -(2**31))])
def test_senseless_spans_are_refused(cache_path: Path, span: tuple[int, int]) -> None:
    name = "text/tokens/char_spans/c/0/0"
    content = bytearray((cache_path / name).read_bytes())
    content[:8] = np.array(span, "<i4").tobytes()
    forge(cache_path, {name: bytes(content)})
    store = open_cache(cache_path).text
    with pytest.raises(CorruptCache, match="span"):
        store.char_spans(list(store.ids))
    assert name in verify_cache(cache_path).findings


@pytest.mark.parametrize("num_units", [2**60, 2**31, -1, 0, "many", 10**400])
def test_huge_or_senseless_counts_are_refused(cache_path: Path, num_units: Any) -> None:
    reseal(cache_path, PLAN_RECORD, lambda record: record["modalities"]["text"].update(num_units=num_units))
    with pytest.raises(CorruptCache):
        open_cache(cache_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "text/../../outside", "a//b", "."])
def test_names_that_leave_the_cache_are_refused(cache_path: Path, name: str) -> None:
    with pytest.raises(CorruptCache):
        safe_path(cache_path, name)
    reseal(cache_path, COMPLETE_RECORD, lambda record: record["files"].update({name: [5, "0" * 64]}))
    with pytest.raises(CorruptCache):
        open_cache(cache_path)
    assert not verify_cache(cache_path).is_sound


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"{}",
        b"null",
        b'{"files": {"a": [1]}}',
        b"\xff\xfe",
        b'{"record_sha256": "0"}',
        b'{"a": NaN, "record_sha256": "x"}',
        b"",
    ],
)
def test_nonsense_in_metadata_is_an_error_with_a_name(cache_path: Path, content: bytes) -> None:
    for name in ("records/complete.json", "records/plan.json", "identity.json"):
        sound = (cache_path / name).read_bytes()
        (cache_path / name).write_bytes(content)
        with pytest.raises(AdvlError) as caught:
            open_cache(cache_path)
        assert str(cache_path) in str(caught.value)
        (cache_path / name).write_bytes(sound)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2**60, 4]},
        {"shape": [10]},
        {"data_type": "object"},
        {"codecs": [{"name": "pickle"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 16]}}},
        {"extra": 1},
    ],
)
def test_metadata_of_arrays_is_exact(cache_path: Path, change: dict[str, Any]) -> None:
    for name in ("text/tokens/values/zarr.json", "text/index/unit/zarr.json"):
        raw = (cache_path / name).read_bytes()
        assert open_cache(cache_path).text is not None
        forge(cache_path, {name: render_json(json.loads(raw) | change)})
        with pytest.raises(CorruptCache, match="does not match the plan"):
            open_cache(cache_path)
        assert name in verify_cache(cache_path).findings
        forge(cache_path, {name: raw})


def double(rows: np.ndarray) -> None:
    rows[0] *= 2


WRONG_NUMBERS = {
    **{f"image/{kind}_{moment}": f"not the {moment}" for kind in ("global", "token") for moment in MOMENTS},
    "text/token_mean": "not the mean",
    "image/global": "nor as long as stats/norm says",
    "text/stats/norm": "nor as long as stats/norm says",
}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_numbers_that_do_not_follow_from_the_features_are_named(pristine: Path, tmp_path: Path, dtype: str) -> None:
    tiny_extract(pristine / "data", tmp_path / "sound", dtype=dtype, dataset={"num_images": 16})
    assert verify_cache(tmp_path / "sound").is_sound
    for name, problem in WRONG_NUMBERS.items():
        cache = Path(shutil.copytree(tmp_path / "sound", tmp_path / name.replace("/", "-")))
        if name == "text/stats/norm":  # Of features of length 1 nobody can tell how long the teacher's were.
            forge_array(cache, "text/global", lambda rows: rows.__imul__(3))
        forge_array(cache, name, double)
        assert any(problem in found for found in verify_cache(cache).findings.values()), name


@pytest.mark.parametrize("lie", ["a file left out", "clipped", "quarantined", "content"])
def test_a_complete_record_that_says_other_than_the_shards_is_named(cache_path: Path, lie: str) -> None:
    first, name = open_cache(cache_path).stores()["text"].ids[0], "text/tokens/values/c/1/0"
    content = flipped((cache_path / name).read_bytes())
    if lie == "content":
        (cache_path / name).write_bytes(content)

    def change(record: dict[str, Any]) -> None:
        if lie == "a file left out":
            record["files"].pop(name)
            (cache_path / name).unlink()
        elif lie == "content":
            record["files"][name][1] = hashlib.sha256(content).hexdigest()
        else:
            record[lie] |= {"text": 3 if lie == "clipped" else {first: "because"}}

    reseal(cache_path, COMPLETE_RECORD, change)
    assert verify_cache(cache_path).findings[COMPLETE_RECORD] == "it is not what the other records say"
