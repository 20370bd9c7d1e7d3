"""What is looked at before a cache is trained on: changes since it was vouched for, and a sample of its numbers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from objects import flipped

from advl_pipeline.base.errors import CorruptCache, StorageError
from advl_pipeline.cache import stores, verify
from advl_pipeline.cache.commit_records import load_complete
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import verified_path
from advl_pipeline.cache.stores import FolderStore
from advl_pipeline.cache.verify import require_trustworthy

VALUES = "text/tokens/values/c/0/0"


def hashed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the files that a check before training hashes."""
    names: list[str] = []
    ask = verify.file_problem

    def noting(store: Any, name: str, *rest: Any) -> str | None:
        names.append(name)
        return ask(store, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(verify, "file_problem", noting)
        require_trustworthy(open_cache(cache))
    return names


@pytest.mark.parametrize(
    ("touched", "days"), [(("records/complete.json",), 3), (("records/complete.json", VALUES), -3)]
)
def test_no_date_hides_a_change(cache_path: Path, touched: tuple[str, ...], days: int) -> None:
    cache = cache_path
    require_trustworthy(open_cache(cache))
    times = (cache / VALUES).stat()
    (cache / VALUES).write_bytes(flipped((cache / VALUES).read_bytes()))
    os.utime(cache / VALUES, ns=(times.st_atime_ns, times.st_mtime_ns))
    for name in touched:
        os.utime(cache / name, times=(time.time() + 86_400 * days,) * 2)
    with pytest.raises(CorruptCache, match=f"{VALUES}: its content changed"):
        require_trustworthy(open_cache(cache))


def test_a_damaged_note_vouches_for_nothing(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = hashed(cache_path, monkeypatch)
    assert set(everything) == set(load_complete(FolderStore(cache_path)).files)
    for content in (b"", b"{torn", b"[]", b'{"record": 1}', b"[" * 100_000):
        verified_path(cache_path).write_bytes(content)
        assert hashed(cache_path, monkeypatch) == everything
    verified_path(cache_path).unlink()
    verified_path(cache_path).mkdir()
    assert [hashed(cache_path, monkeypatch) for _ in range(2)] == [everything] * 2


def test_what_was_vouched_for_is_not_hashed_again(
    pristine: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_path
    assert hashed(pristine / "cache", monkeypatch) == []  # Who completed it vouched for it.
    assert set(hashed(cache, monkeypatch)) == set(load_complete(FolderStore(cache)).files)  # A copy.
    assert hashed(cache, monkeypatch) == []
    (cache / VALUES).touch()
    assert hashed(cache, monkeypatch) == [VALUES]
    assert hashed(cache, monkeypatch) == []


def test_a_cache_that_may_only_be_read_is_hashed_each_time(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: str) -> None:
        raise StorageError("A file could not be written.", where=str(path))

    monkeypatch.setattr(stores, "write_text", refuse)
    first = hashed(cache_path, monkeypatch)
    assert first
    assert hashed(cache_path, monkeypatch) == first
