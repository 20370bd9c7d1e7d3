"""Pictures as files hold them: students and teachers see the same pixels, and what cannot be shown is refused."""

from __future__ import annotations

import json
import os
import re
import socket
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import complaint, printed
from own_rows import choice_row, write_json_lines
from PIL import EpsImagePlugin, Image

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.pictures import read_rgb, read_size, read_square
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.teachers.vision_backbone import read_checked

SIDE = 8
ROOT = Path(__file__).parents[2]


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
    assert np.array_equal(np.asarray(read_checked(path, width=SIDE, height=SIDE)), expected)


def test_grey_of_sixteen_bits_is_refused_where_pictures_are_checked_and_where_they_are_read(tmp_path: Path) -> None:
    """Pillow would clip it: all that is not nearly black would be white."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)).save(path)
    for read in (lambda: read_size(path, "deep.png"), lambda: read_rgb(path), lambda: read_checked(path)):
        with pytest.raises((Malformed, DatasetError), match="more than 8 bits"):
            read()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 moveto\n%%EOF\n"
OTHERS = "JPEG, PNG, WEBP, GIF, BMP, TIFF are read"
NO_FILE = "cannot be read: it is no regular file"


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def bomb() -> bytes:
    """Return a PNG that claims 60,000 pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def blank(width: int, height: int) -> Callable[[Path], object]:
    return lambda path: Image.new("L", (width, height)).save(path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, NO_FILE),
    "socket": (make_socket, NO_FILE),
    "device": (lambda path: path.symlink_to("/dev/zero"), NO_FILE),
    # Pillow hands EPS to Ghostscript, whatever the file is called.
    "EPS": (holding(EPS), f"is not a readable picture: it is EPS; {OTHERS}"),
    "PPM": (holding(b"P6 8 8 255 " + bytes(192)), f"is not a readable picture: it is PPM; {OTHERS}"),
    "SVG": (holding(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), OTHERS),
    "short": (holding(b"x"), OTHERS),
    "bomb": (holding(bomb()), "more pixels than a picture may have (decompression bomb)"),
    # Scaled to 224 pixels on its short side it would take 12 GB.
    "narrow": (blank(1, 60_000), "1 x 60000 pixels; at most 32,768 a side and 200 to 1 are read"),
    "wide": (blank(40_000, 1_000), "40000 x 1000 pixels; at most 32,768 a side"),
    "200 to 1": (blank(5, 1_001), "5 x 1001 pixels; at most 32,768 a side"),
}


@pytest.mark.timeout(60)
def test_what_is_no_picture_is_refused_at_once_or_skipped_and_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # It is looked for once in a process.
    bad = {Path(f"pictures/{kind}.png"): case for kind, case in REFUSED.items()}
    rows = [choice_row(number, split="train") for number in range(5)]
    rows += [choice_row(0, split="train", image=str(path)) for path in bad]
    data = write_json_lines(Path("mine.jsonl"), rows)
    for path, (write, _) in bad.items():
        write(path)
    out, _ = printed(capsys, "datasets", "check", data, "--deep", code=5)
    for path, (_, why) in bad.items():
        assert any(str(path) in line and why in line for line in out.splitlines()), (path, out)
        for read in (read_rgb, read_checked):
            with pytest.raises(DatasetError):
                read(path)
    words = ("extract", "--teacher", "efficientnet-lite0", "--data", data, "--modality", "image", "--no-confidence")
    code, message = complaint(capsys, *words)
    assert (code, "pictures/pipe.png" in message, NO_FILE in message) == (5, True, True)
    printed(capsys, *words, "--output", "cache", "--on-error", "skip")
    assert len(open_cache("cache").stores()["image"]) == 5
    assert not Path("started").exists()


def test_all_formats_are_opened_in_one_place() -> None:
    sources = [path for folder in ("advl_pipeline", "cli") for path in (ROOT / folder).rglob("*.py")]
    opening = [path.name for path in sources if re.search(r"Image\.open\(|image\.open\(", path.read_text("utf-8"))]
    assert opening == ["pictures.py"]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_formats_that_are_read_and_the_first_frame_of_an_animation(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("black", "white")]
    is_animated = ending in ("png", "webp", "gif", "tif")
    more = {"save_all": True, "append_images": frames[1:]} if is_animated else {}
    frames[0].save(tmp_path / f"picture.{ending}", **more)
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"image": f"picture.{ending}", "text": "It is black.", "label": "yes"}))
    assert np.asarray(read_rgb(tmp_path / f"picture.{ending}")).max() == 0
    printed_lines, _ = printed(capsys, "datasets", "check", data, "--deep")
    assert ("1 pictures are animations, of which the first frame is read" in printed_lines) == is_animated


def test_the_longest_picture_that_is_read(tmp_path: Path) -> None:
    Image.new("L", (2_000, 10)).save(tmp_path / "long.png")
    assert read_rgb(tmp_path / "long.png").size == (2_000, 10)
