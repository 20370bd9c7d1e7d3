"""The journal beside a cache: how long it took, over every command that made a part of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import advl, complaint
from own_rows import choice_row, write_json_lines
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.base.errors import CorruptCache
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


@pytest.mark.parametrize("ending", ["extraction.jsonl", "vouched.json"])
@pytest.mark.parametrize("thing", ["link", "dangling", "file"])
def test_notes_next_to_a_cache_are_written_over_nothing(
    ending: str, thing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json_lines(tmp_path / "data.jsonl", [choice_row(number) for number in range(4)])
    mine, note = tmp_path / "mine.txt", tmp_path / f"cache.{ending}"
    if thing == "file":
        note.write_text("mine", encoding="utf-8")
    else:
        note.symlink_to(mine)
    if thing == "link":
        mine.write_text("mine", encoding="utf-8")
    before = tree_bytes(tmp_path)
    for command in ("extract --teacher minilm-l6", "prepare --size 8"):
        code, message = complaint(
            capsys, *command.split(), "--data", tmp_path / "data.jsonl", "--output", tmp_path / "cache"
        )
        assert code == 2, message
        assert str(note) in message
        assert "move it away, or give another --output" in message
    assert tree_bytes(tmp_path) == before
    # From Python there is no door: the cache is written, the note is not.
    tiny_extract(tmp_path / "pictures", tmp_path / "cache")
    assert mine.exists() == (thing == "link")
    assert (note if thing == "file" else tmp_path / "data.jsonl").exists()
    assert note.is_symlink() == (thing != "file")
    assert advl(capsys, "cache", "prune", tmp_path / "cache", "--all")[0] == 0
    assert os.path.lexists(note)
    assert {name: content for name, content in tree_bytes(tmp_path).items() if name in before} == before


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
