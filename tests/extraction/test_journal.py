"""The journal beside a cache: how long it took, over every command that made a part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_extraction import tiny_extract

from advl_pipeline.errors import CorruptCache
from advl_pipeline.extraction.progress import extraction_seconds, journal_path, record_extraction


def test_commands_add_up_and_one_that_finds_all_done_adds_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert extraction_seconds(cache) is None
    first = tiny_extract(tmp_path / "pictures", cache)
    assert extraction_seconds(cache) == first.seconds
    tiny_extract(tmp_path / "pictures", cache)
    assert extraction_seconds(cache) == first.seconds
    record_extraction(cache, seconds=2.5, num_units=1, device="cpu")
    assert extraction_seconds(cache) == pytest.approx(first.seconds + 2.5)
    assert journal_path(cache).parent == tmp_path, "nothing that depends on the clock lies inside the cache"


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    journal_path(tmp_path / "cache").write_text("{torn", encoding="utf-8")
    with pytest.raises(CorruptCache, match="journal"):
        extraction_seconds(tmp_path / "cache")


def test_a_journal_that_cannot_be_written_fails_no_extraction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal_path(tmp_path / "cache").mkdir()
    assert tiny_extract(tmp_path / "pictures", tmp_path / "cache").encoded_units
    assert "could not be noted" in capsys.readouterr().err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_extract(tmp_path / "pictures", Path())
    assert (tmp_path / "here.extraction.jsonl").is_file()
