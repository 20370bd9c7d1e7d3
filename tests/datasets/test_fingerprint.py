"""Digests are of content; the table only saves reading what has not changed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import write_picture

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets import fingerprint
from advl_pipeline.datasets.fingerprint import Depth, FileDigests, FileFacts
from advl_pipeline.datasets.problems import Malformed


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were really read; files count as settled as soon as they are written."""
    names: list[str] = []
    original = FileDigests._read

    def counted(self: FileDigests, name: str, depth: Depth) -> tuple[FileFacts, tuple[Any, ...] | None]:
        names.append(name)
        return original(self, name, depth)

    monkeypatch.setattr(FileDigests, "_read", counted)
    monkeypatch.setattr(fingerprint, "_RACY_NS", 0)
    return names


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"content")
    for _ in range(3):
        digests = FileDigests(tmp_path, tmp_path / "index")
        assert digests.facts("a").digest == hashlib.sha256(b"content").digest()
        digests.flush()
    assert reads == ["a"]


def test_a_changed_file_is_read_again_even_with_its_old_time(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"content")
    digests = FileDigests(tmp_path, tmp_path / "index")
    digests.facts("a")
    digests.flush()
    before = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = FileDigests(tmp_path, tmp_path / "index")
    assert again.facts("a").digest == hashlib.sha256(b"CONTENT").digest()
    assert reads == ["a", "a"]


def test_a_file_written_just_now_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    digests = FileDigests(tmp_path, tmp_path / "index")
    digests.facts("a")
    digests.flush()
    assert not (tmp_path / "index").exists()


def test_many_files_and_two_writers_agree(tmp_path: Path, reads: list[str]) -> None:
    names = [f"{number}.bin" for number in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    first, second = (FileDigests(tmp_path, tmp_path / "index") for _ in range(2))
    first.warm(names[:30])
    second.warm(names[20:])
    reads.clear()
    both = FileDigests(tmp_path, tmp_path / "index")
    assert [both.facts(name).digest for name in names] == [hashlib.sha256(name.encode()).digest() for name in names]
    assert reads == []


def test_a_picture_that_is_cut_off_is_told_by_its_pixels_alone(tmp_path: Path, reads: list[str]) -> None:
    for name in ("whole.jpg", "cut.jpg"):
        write_picture(tmp_path / name, size=(200, 200))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-100])
    time.sleep(0.02)
    for _ in range(2):
        digests = FileDigests(tmp_path, tmp_path / "index")
        digests.warm(["whole.jpg", "cut.jpg"], Depth.HEADER)
        assert digests.facts("cut.jpg", Depth.HEADER).width == 200
        digests.warm(["whole.jpg", "cut.jpg"], Depth.PIXELS)
        assert digests.facts("whole.jpg", Depth.PIXELS).decoded
        with pytest.raises(Malformed, match="truncated"):
            digests.facts("cut.jpg", Depth.PIXELS)
        digests.flush()
    assert reads.count("whole.jpg") == 2  # its header, then its pixels, and never again


def test_an_index_that_cannot_be_written_says_what_to_set(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "index").write_text("a file where the folder should be")
    digests = FileDigests(tmp_path, tmp_path / "index" / "below")
    digests.facts("a")
    with pytest.raises(DatasetError, match="index") as caught:
        digests.flush()
    assert "ADVL_INDEX" in caught.value.next_command
