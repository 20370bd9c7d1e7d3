"""Pictures alone: a folder of them, or rows of nothing else, are extracted and prepared; nothing is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import complaint, printed
from own_rows import COLOURS, write_json_lines, write_pictures

from advl_pipeline.cache.reader import open_cache


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "some photos")
    return tmp_path


def test_a_folder_and_rows_of_pictures_have_one_cache_each_with_the_same_features(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": f"some photos/{colour}.png"} for colour in sorted(COLOURS)]
    write_json_lines(here / "mine.jsonl", rows)
    caches = []
    for data in ("some photos", "mine.jsonl"):
        out, messages = printed(capsys, "datasets", "check", data, "--deep")
        assert "5 pictures, 0 problems" in out
        extract = ("extract", "--teacher", "efficientnet-lite0", "--data", data, "--image-tokens", "none")
        assert "image: 5 units" in printed(capsys, *extract, "--dry-run")[0]
        out, messages = printed(capsys, *extract)
        assert f"{data}: pictures alone, from the columns image" in messages
        assert "image: 5 units" in out
        caches.append(open_cache(out.split("cache: ")[1].strip()))
    left, right = (cache.image for cache in caches)
    assert left is not None
    assert right is not None
    units = list(left.ids)
    assert units == list(right.ids)
    assert (left.global_features(units) == right.global_features(units)).all()
    printed(capsys, "cache", "verify", caches[0].path, "--recompute", 2)
    out, _ = printed(capsys, "prepare", "--data", "some photos", "--student", "vilt-tiny")
    assert "image: 5 units" in out


def test_pictures_alone_teach_no_task_and_have_no_texts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = complaint(capsys, "finetune", "--data", "some photos", "--method", "plain", "--output", "run")
    assert code == 5
    assert "so there is nothing to learn" in message
    code, message = complaint(capsys, "extract", "--teacher", "minilm-l6", "--data", "some photos")
    assert code == 5
    assert "There is nothing to extract." in message
    assert not (here / "caches").exists()
    # A row of pictures among rows of a task is malformed.
    rows = [
        {"image": "some photos/red.png", "text": "red", "label": "yes"},
        {"image": "some photos/red.png"},
    ]
    (here / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, _ = printed(capsys, "datasets", "check", "mixed.jsonl", code=5)
    assert "mixed.jsonl:2" in out
