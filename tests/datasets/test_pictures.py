"""Pictures as files hold them: students and teachers see the same pixels, and what cannot be shown is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import complaint
from own_rows import choice_row, write_json_lines
from PIL import Image

from advl_pipeline.datasets.pictures import picture_size, read_rgb, read_square
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import DatasetError
from advl_pipeline.teachers.vision_backbone import read_picture

SIDE = 8


def write_transparent(path: Path, mode: str) -> None:
    """Write a black square, opaque in its left half alone."""
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, : SIDE // 2] = 255
    if mode == "P":
        picture = Image.fromarray((alpha == 0).astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.save(path, transparency=1)
        return
    grey = Image.new("L", (SIDE, SIDE), 0)
    bands = [grey, Image.fromarray(alpha)] if mode == "LA" else [grey, grey, grey, Image.fromarray(alpha)]
    Image.merge(mode, bands).save(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_to_students_and_teachers_alike(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    write_transparent(path, mode)
    expected = np.full((SIDE, SIDE, 3), 255, np.uint8)
    expected[:, : SIDE // 2] = 0
    assert np.array_equal(np.asarray(read_rgb(path)), expected)
    assert np.array_equal(read_square(path, SIDE), expected)
    assert np.array_equal(np.asarray(read_picture(path, width=SIDE, height=SIDE)), expected)


def test_grey_of_sixteen_bits_is_refused_where_pictures_are_checked_and_where_they_are_read(tmp_path: Path) -> None:
    """Pillow would clip it: all that is not nearly black would be white."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)).save(path)
    for read in (lambda: picture_size(path, "deep.png"), lambda: read_rgb(path), lambda: read_picture(path)):
        with pytest.raises((Malformed, DatasetError), match="more than 8 bits"):
            read()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [make_pipe, make_socket, make_device])
def test_what_is_no_regular_file_is_refused_at_once(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_json_lines(Path("mine.jsonl"), [choice_row(number, split="train") for number in range(5)])
    opened = open_dataset(str(data), split="train")
    path = next(unit.path for unit in opened.image_units() if unit.path.name == "red.png")
    path.unlink()
    make(path)
    with pytest.raises(DatasetError):
        read_rgb(path)
    code, message = complaint(capsys, "extract", "--teacher", "efficientnet-lite0", "--data", data)
    assert code == 5
    assert "pictures/red.png cannot be read: it is no regular file" in message
