"""A disk that is full or fails in mid-write: the kernel's own ENOSPC and EIO.

A file that is about to be written is a device whose writes fail: `/dev/full` has no space left, and the first bytes
of a process's own memory give an input/output error.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.base.errors import StorageError
from advl_pipeline.cache import stores
from advl_pipeline.cache.verify import verify_cache

FAILING = {"/dev/full": "No space left on device", "/proc/self/mem": "Input/output error"}


@pytest.mark.parametrize(
    ("target", "device"),
    [
        ("text/unit_id/c/0/0", "/dev/full"),
        ("image/tokens/values/c/1/0", "/proc/self/mem"),
        ("text/global/c/0/0", "/dev/full"),
    ],
    ids=["plan", "shard", "table"],
)
def test_the_same_call_resumes_to_the_same_bytes(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, device: str
) -> None:
    cache = tmp_path / "cache"
    ending = f"-{target.replace('/', '_')}"
    open_new = stores._open_new

    def open_failing(path: Path) -> io.FileIO:
        file = open_new(path)
        if path.parent != cache / ".work/tmp" or not path.name.endswith(ending):
            return file
        file.close()
        return io.FileIO(device, "r+b")

    monkeypatch.setattr(stores, "_open_new", open_failing)
    with pytest.raises(StorageError) as caught:
        tiny_extract(pristine / "data", cache)
    monkeypatch.undo()
    assert caught.value.exit_code == 7
    assert FAILING[device] in caught.value.why
    assert caught.value.where == target
    assert not list(cache.glob(".work/tmp/*"))
    assert not (cache / "records/complete.json").exists()
    tiny_extract(pristine / "data", cache)
    assert tree_bytes(cache) == tree_bytes(pristine / "cache")
    assert verify_cache(cache).is_sound
