"""Data in a folder that cannot be written: the index goes to the user's cache, which is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import printed
from own_rows import choice_row, write_json_lines

from advl_pipeline.datasets import roots
from advl_pipeline.datasets.own import data as data_of_rows


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of data that this process may read alone."""
    folder = tmp_path / "data"
    write_json_lines(folder / "mine.jsonl", [choice_row(number) for number in range(20)])
    folder.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ADVL_INDEX", raising=False)
    is_root = os.getuid() == 0
    if is_root:
        # Whether a place can be written is asked for the real user, and root may write anywhere.
        os.setreuid(65534, -1)
    yield folder
    if is_root:
        os.setreuid(0, -1)
    folder.chmod(0o755)


def test_the_index_of_read_only_data_lies_in_the_users_cache(
    locked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(locked.iterdir())
    indices: list[list[Path]] = []
    for _ in range(2):
        # As another process would.
        data_of_rows._opened.clear()
        roots._say_elsewhere.cache_clear()
        out, messages = printed(capsys, "datasets", "check", locked / "mine.jsonl")
        assert "0 problems" in out
        assert (
            f"note: {locked} cannot be written, so the index lies in {tmp_path / 'home' / 'advl' / 'index'}"
            in messages
        )
        indices.append(sorted((tmp_path / "home" / "advl" / "index").rglob("*.arrow")))
    assert len(indices[0]) == 1
    assert indices[0] == indices[1]
    assert sorted(locked.iterdir()) == before
