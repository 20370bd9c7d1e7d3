"""What an extraction says and notes: its parts, its grid, which row stopped it, how long it took."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from commands import complaint, printed
from own_rows import choice_row, write_json_lines
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.base.errors import CorruptCache
from advl_pipeline.extraction.progress import extraction_seconds, journal_path, record_extraction


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("said")
    write_json_lines(folder / "mine.jsonl", [choice_row(number, split="train") for number in range(10)])
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


EXTRACT = "extract --teacher efficientnet-lite0 --modality image --image-tokens grid".split()


def test_a_grid_that_is_averaged_and_every_part_of_the_time_are_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "the teacher's grid of 7 x 7 patches is averaged to 4 x 4 (--grid-side 7 stores all)"
    out, _ = printed(capsys, *EXTRACT, "--data", "mine.jsonl", "--grid-side", 4, "--dry-run")
    assert said in out
    out, _ = printed(capsys, *EXTRACT, "--data", "mine.jsonl", "--grid-side", 4)
    assert said in out
    seconds, parts = re.findall(r"encoded \d+ units in ([\d.]+) s \((.*)\)", out)[0]
    named = {part.split()[0]: float(part.split()[1]) for part in parts.split(", ")}
    assert list(named) == ["plan", "read", "encode", "write", "confidence"]
    assert sum(named.values()) == pytest.approx(float(seconds), abs=0.5 + 0.3 * float(seconds))
    cache = "caches/efficientnet-lite0/mine/train"
    assert said in printed(capsys, "cache", "info", cache)[0]
    # All cells are stored: there is nothing to say.
    assert "is averaged" not in printed(capsys, *EXTRACT, "--data", "mine.jsonl", "--output", "whole", "--dry-run")[0]
    assert "--grid-side" in printed(capsys, "extract", "--help")[0]
    # It was made here, of data that its record names.
    out, _ = printed(capsys, "cache", "verify", cache, "--recompute", 2)
    assert "2 units computed again" in out
    # Whoever made a cache that came from elsewhere named what they liked.
    shutil.copytree(cache, "elsewhere")
    code, message = complaint(capsys, "cache", "verify", "elsewhere", "--recompute", 2)
    assert code == 2
    assert "opened only if you give them" in message


def test_a_cache_of_other_own_data_is_called_by_its_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json_lines(here / "yours.jsonl", [choice_row(number, split="train") for number in range(5)])
    printed(capsys, *EXTRACT, "--data", "yours.jsonl", "--confidence", "none")
    cache = "caches/efficientnet-lite0/yours/train"
    code, message = complaint(
        capsys, "finetune", "--data", "mine.jsonl", "--cache", cache, "--output", "run", "--num-steps", 1
    )
    assert code == 3
    assert re.search(r'name +"mine.jsonl" +"yours.jsonl"', message), message
    assert "own-" not in message


def test_a_picture_that_cannot_be_decoded_names_its_row_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [choice_row(number, split="train") for number in range(5)]
    write_json_lines(here / "bad" / "mine.jsonl", rows)
    broken = here / "bad" / "pictures" / "blue.png"
    broken.write_bytes(broken.read_bytes()[:60])
    code, message = complaint(capsys, *EXTRACT, "--data", "bad/mine.jsonl", "--output", "from-bad")
    assert code == 5
    assert "bad/pictures/blue.png" in message
    assert "(used by bad/mine.jsonl:3)" in message
    assert not (here / "from-bad").exists()


def test_commands_add_up_and_one_that_finds_all_done_adds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    assert extraction_seconds(cache) is None
    first = tiny_extract(tmp_path / "pictures", cache)
    for _ in range(2):
        assert extraction_seconds(cache) == first.seconds
        tiny_extract(tmp_path / "pictures", cache)
    record_extraction(cache, seconds=2.5, num_units=1, device="cpu")
    assert extraction_seconds(cache) == pytest.approx(first.seconds + 2.5)
    assert journal_path(cache).parent == tmp_path, "nothing that depends on the clock lies inside the cache"
    journal_path(cache).write_text("{torn", encoding="utf-8")
    with pytest.raises(CorruptCache, match="journal"):
        extraction_seconds(cache)
    journal_path(tmp_path / "other").mkdir()
    assert tiny_extract(tmp_path / "pictures", tmp_path / "other").encoded_units
    assert "could not be noted" in capsys.readouterr().err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_extract(tmp_path / "pictures", Path())
    assert (tmp_path / "here.extraction.jsonl").is_file()


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
    printed(capsys, "cache", "prune", tmp_path / "cache", "--all")
    assert os.path.lexists(note)
    assert {name: content for name, content in tree_bytes(tmp_path).items() if name in before} == before
