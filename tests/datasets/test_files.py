"""Files as they are found: documents, pictures, digests of both, and folders that cannot be written."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import complaint, printed
from dataset_mirrors import write_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from own_rows import choice_row, rows_of, write_json_lines
from PIL import EpsImagePlugin, Image

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets import fingerprint, roots
from advl_pipeline.datasets.fingerprint import Depth, FileDigests, FileFacts
from advl_pipeline.datasets.indexed_pictures import IndexedPictures
from advl_pipeline.datasets.pictures import read_rgb, read_square, size_of, unit_of
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.datasets.row_files import json_items

# Lists in JSON documents are streamed, and every broken one is an error with its line.

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream") / "f.json"


def stream(file: Path, text: str) -> list[Any]:
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    entries = list(json_items(file, "items"))
    assert [line for line, _ in entries] == sorted(line for line, _ in entries)
    return [item for _, item in entries]


@settings(max_examples=40)
@given(
    before=st.dictionaries(st.text(max_size=3), values, max_size=2),
    items=st.lists(values, max_size=5),
    after=st.dictionaries(st.text(max_size=3), values, max_size=2),
    indent=st.sampled_from([None, 1]),
)
def test_same_items_as_json(
    file: Path, before: dict[str, Any], items: list[Any], after: dict[str, Any], indent: int | None
) -> None:
    document = {**before, "items": items, **{key: value for key, value in after.items() if key not in before}}
    assert stream(file, json.dumps(document, indent=indent)) == items
    assert stream(file, json.dumps(items, indent=indent)) == items


@settings(max_examples=40)
@given(items=st.lists(values, min_size=1, max_size=4), share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_an_error(file: Path, items: list[Any], share: float) -> None:
    text = json.dumps({"items": items})
    with pytest.raises(DatasetError):
        stream(file, text[: int(share * len(text))])


def test_broken_documents_name_their_line(file: Path) -> None:
    for text, line, why in (
        ('{"items": [1,\n2', 2, "cut off"),
        ('{"items": [1,\n"ab', 2, "cut off"),
        ('{"items": [1,\n]}', 2, "Expecting value"),
        ('{"items": [1\n2]}', 2, "expected ','"),
        ('{"other": 1\n}', 2, "no list 'items'"),
        ('{"items": {}}', 1, "no list 'items'"),
        ("\n\n5", 3, "expected '[' or '{'"),
        ("5", 1, "no list: expected '[' or '{'"),
        ("{}", 1, "no list 'items'"),
        ("items", 1, "not JSON"),
        ("", 1, "empty"),
        ('{"items": []}\nx', 2, "follows the end"),
        ('{"items": [\n"\udcff"]}', 2, "not UTF-8"),
    ):
        with pytest.raises(DatasetError) as caught:
            stream(file, text)
        assert caught.value.where == f"{file}:{line}"
        assert why in caught.value.why


def test_deep_nesting_is_an_error(file: Path) -> None:
    with pytest.raises(DatasetError):
        stream(file, '{"items": [' + "[" * 100_000)


# Pictures: students and teachers see the same pixels, and what cannot be shown is refused.

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
    assert np.array_equal(read_square(unit_of(path, "half.png"), SIDE), expected)


def test_grey_of_sixteen_bits_is_refused_where_pictures_are_checked_and_where_they_are_read(tmp_path: Path) -> None:
    """Pillow would clip it: all that is not nearly black would be white."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)).save(path)
    for read in (lambda: size_of(path.read_bytes(), "deep.png"), lambda: read_rgb(path)):
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
        with pytest.raises(DatasetError):
            read_rgb(path)
    words = ("extract", "--teacher", "efficientnet-lite0", "--data", data)
    words = (*words, "--modality", "image", "--confidence", "none")
    code, message = complaint(capsys, *words)
    assert (code, "pictures/pipe.png" in message, NO_FILE in message) == (5, True, True)
    printed(capsys, *words, "--output", "cache", "--on-error", "skip")
    assert len(open_cache("cache").stores()["image"]) == 5
    assert not Path("started").exists()


@pytest.mark.timeout(60)
def test_files_that_never_end_are_read_by_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel's log is a regular file of no length; a pipe may stand in the place of any document or index."""
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").symlink_to("/proc/kmsg")
    assert "The dataset has no rows." in printed(capsys, "datasets", "check", "log.jsonl", code=5)[1]
    data = write_json_lines(Path("mine.jsonl"), [choice_row(number, split="train") for number in range(5)])
    printed(capsys, "datasets", "check", data)
    for path in [path for path in Path(".index").rglob("*") if path.is_file()]:
        path.unlink()
        os.mkfifo(path)
    printed(capsys, "datasets", "check", data)
    for name in ("study.json", "run.json"):
        Path("runs").mkdir(exist_ok=True)
        os.mkfifo(f"runs/{name}")
        code, message = complaint(capsys, "report", "runs")
        assert (code, "Traceback" in message) == (2, False), message
        Path(f"runs/{name}").unlink()


def test_a_hub_name_without_a_repository_is_not_the_working_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("hf:", "hf:@main", "hf::default"):
        assert "The name of a hub dataset is empty." in printed(capsys, "datasets", "check", name, code=2)[1]


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


REPLACED_WHILE: dict[str, tuple[str, ...]] = {
    "extract": ("extract", "--teacher", "efficientnet-lite0", "--modality", "image", "--confidence", "none"),
    "extract --on-error skip": (
        *("extract", "--teacher", "efficientnet-lite0", "--modality", "image", "--confidence", "none"),
        *("--on-error", "skip"),
    ),
    "prepare": ("prepare", "--size", "8"),
    "finetune with patches": ("finetune", "--student", "vilt-tiny", "--method", "plain", "--num-steps", "2"),
    "finetune with boxes": ("finetune", "--student", "uniter-tiny", "--method", "plain", "--num-steps", "2"),
}


@pytest.mark.parametrize("words", REPLACED_WHILE.values(), ids=REPLACED_WHILE)
def test_a_picture_that_is_replaced_while_a_command_runs_is_never_taken_for_the_one_it_replaces(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A synchronised folder does this; the file keeps its size and its times."""
    monkeypatch.chdir(tmp_path)
    data = write_json_lines(Path("mine.jsonl"), rows_of(choice_row, image="picture.bmp"))
    picture = Path("picture.bmp")
    Image.new("RGB", (64, 48), "red").save(picture)
    make_unit = IndexedPictures._make_unit
    colours = itertools.cycle(["blue", "red"])

    def replaced_afterwards(pictures: IndexedPictures, image: int) -> ImageUnit:
        unit = make_unit(pictures, image)
        times = picture.stat()
        Image.new("RGB", (64, 48), next(colours)).save("other.bmp")
        os.utime("other.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
        Path("other.bmp").replace(picture)
        return unit

    monkeypatch.setattr(IndexedPictures, "_make_unit", replaced_afterwards)
    _, message = printed(capsys, *words, "--data", data, "--output", "made", code=5)
    assert "A file of the dataset was replaced while this command ran." in message
    assert str(picture) in message
    monkeypatch.setattr(IndexedPictures, "_make_unit", make_unit)
    printed(capsys, *words, "--data", data, "--output", "again")


# Digests are of content; their table only saves reading what has not changed.


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


# Data in a folder that cannot be written: the index goes to the user's cache, which is said.


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
        roots._say_elsewhere.cache_clear()
        out, messages = printed(capsys, "datasets", "check", locked / "mine.jsonl")
        assert "0 problems" in out
        assert (
            f"note: {locked} cannot be written, so the index is in {tmp_path / 'home' / 'advl' / 'index'}" in messages
        )
        indices.append(sorted((tmp_path / "home" / "advl" / "index").rglob("*.arrow")))
    assert len(indices[0]) == 1
    assert indices[0] == indices[1]
    assert sorted(locked.iterdir()) == before
