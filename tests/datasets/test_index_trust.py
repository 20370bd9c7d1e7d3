"""What an index holds is what was read: no bit of it changes unseen, nor a file while it is read, nor a picture."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from commands import complaint, printed
from own_rows import class_row, rows_of, write_json_lines, write_pictures

from advl_pipeline.base.packages import data_files
from advl_pipeline.datasets import fingerprint, index_builder
from advl_pipeline.datasets.arrow_file import ArrowFile
from advl_pipeline.datasets.index_files import index_draft
from advl_pipeline.datasets.registry import open_dataset


def opened_anew(data: Path | str, split: str = "train", **options: Any) -> tuple[str, list[Any]]:
    """Return the digest and what the examples say, as another process would open them."""
    dataset = open_dataset(str(data), split=split, **options)
    said = [(e.example_id, e.label, e.candidates, e.image.unit_id, e.image.width) for e in dataset]
    return dataset.content_digest(), said


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty rows, indexed."""
    data = write_json_lines(tmp_path / "data.jsonl", rows_of(class_row))
    opened_anew(data)
    return data


def index_files(folder: Path) -> list[Path]:
    return sorted((folder / ".index").rglob("*.arrow"))


@pytest.mark.parametrize("seed", range(12))
def test_a_bit_that_flips_in_an_index_is_found(seed: int, data: Path) -> None:
    expected = opened_anew(data)
    generator = random.Random(seed)
    file = generator.choice(index_files(data.parent))
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)
    assert opened_anew(data) == expected
    assert opened_anew(data) == expected


def test_labels_that_were_moved_in_an_index_are_found(data: Path) -> None:
    """In a sound Arrow file, as anyone can write one."""
    expected = opened_anew(data)
    (file,) = index_files(data.parent)
    batch = ArrowFile(file).batch
    assert not ArrowFile(file).numbers("label").flags.writeable, "they are a view of the file"
    labels = batch.column("label").take(pa.array(range(len(batch))[::-1]))
    moved = batch.set_column(batch.schema.get_field_index("label"), "label", labels)
    with pa.OSFile(f"{file}.new", "wb") as written, pa.ipc.new_file(written, moved.schema) as writer:
        writer.write_batch(moved)
    Path(f"{file}.new").replace(file)
    assert opened_anew(data) == expected


def test_an_index_in_the_place_of_another_is_found(data: Path, tmp_path: Path) -> None:
    expected = opened_anew(data)
    other = write_json_lines(tmp_path / "other/data.jsonl", rows_of(class_row, label="no"))
    opened_anew(other)
    ((file,), (others,)) = index_files(data.parent), index_files(other.parent)
    shutil.copyfile(others, file)
    assert opened_anew(data) == expected


def test_a_flipped_size_of_a_picture_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of what was learned of files has a digest too; it is written for pictures that lie still."""
    monkeypatch.setattr(fingerprint, "_RACY_NS", 0)
    write_pictures(tmp_path)
    table = tmp_path / "files.npy"

    def known() -> Any:
        return fingerprint.FileDigests(tmp_path, tmp_path)._known("red.png", fingerprint.Depth.HEADER)

    digests = fingerprint.FileDigests(tmp_path, tmp_path)
    expected = digests.facts("red.png", fingerprint.Depth.HEADER)
    digests.flush()
    assert known() == expected
    whole = table.read_bytes()
    for place in range(0, len(whole), 7):
        table.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert known() is None


@pytest.mark.parametrize("form", ["{folder}/data.jsonl", "hf:{folder}/set"])
def test_data_that_change_while_they_are_read_are_refused(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if form.startswith("hf:"):
        pytest.importorskip("datasets")
    data = write_json_lines(tmp_path / "data.jsonl", rows_of(class_row, split="train"))
    (tmp_path / "set").mkdir()
    shutil.copytree(tmp_path / "pictures", tmp_path / "set/pictures")
    rows = data.read_text()
    copy = tmp_path / "set/train.jsonl"
    copy.write_text(rows)
    shaped = index_builder.shaped

    def overwrite(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, row in enumerate(shaped(*arguments, **options)):
            yield row
            if number == 3:
                data.write_text(rows.replace('"yes"', '"new"'))
                copy.write_text(rows.replace('"yes"', '"new"'))

    monkeypatch.setattr(index_builder, "shaped", overwrite)
    name = form.format(folder=tmp_path)
    code, message = complaint(capsys, "datasets", "check", name, "--data-root", tmp_path)
    assert code == 5
    assert "The data changed while they were read." in message
    monkeypatch.undo()
    printed(capsys, "datasets", "check", name, "--data-root", tmp_path)
    assert {label for _, label, *_ in opened_anew(name, data_root=tmp_path)[1]} == {0, 1}


def test_drafts_of_a_killed_build_are_removed_by_the_next_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    data = write_json_lines(tmp_path / "data.jsonl", rows_of(class_row))
    kill = (
        "import os, pathlib, sys\n"
        "from advl_pipeline.datasets.index_files import index_draft\n"
        "with index_draft(pathlib.Path(sys.argv[1]) / 'x.arrow') as draft:\n"
        "    draft.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    opened_anew(data)
    folder = index_files(tmp_path)[0].parent
    done = subprocess.run([sys.executable, "-c", kill, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = folder.glob("*.draft")
    with index_draft(folder / "y.arrow") as living:
        data.write_text(data.read_text().replace('"yes"', '"ja"'))
        opened_anew(data)
        assert list(folder.glob("*.draft")) == [living]
    assert not left.exists()
    assert (folder / "y.arrow").is_file()


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o700), (0o640, 0o750)])
def test_an_index_is_open_to_nobody_who_cannot_read_the_data(mode: int, expected: int, tmp_path: Path) -> None:
    data = write_json_lines(tmp_path / "data.jsonl", rows_of(class_row))
    data.chmod(mode)
    opened_anew(data)
    (folder,) = (tmp_path / ".index").iterdir()
    assert folder.stat().st_mode & 0o777 == expected & folder.parent.stat().st_mode


@pytest.mark.parametrize("name", ["cv-bench", "whole.toml"])
def test_pictures_that_were_exchanged_in_the_index_are_found(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a revision that is named, and of a set that is read with its pictures."""
    pytest.importorskip("datasets")
    from fake_hub.sets import colour_samples, write_twin

    write_twin(tmp_path, "cv-bench", colour_samples(24), group_rows=5)
    unpinned = re.sub(r"@[0-9a-f]{7,40}\"", '"', data_files("cards")["cv-bench"].read_text())
    (tmp_path / "whole.toml").write_text(unpinned)
    data = name if name == "cv-bench" else str(tmp_path / name)
    expected = opened_anew(data, "test", data_root=tmp_path)
    pictures = sorted(tmp_path.rglob("pictures/*"))
    first, second = pictures[0].read_bytes(), pictures[1].read_bytes()
    pictures[0].write_bytes(second)
    pictures[1].write_bytes(first)
    words = ("extract", "--teacher", "efficientnet-lite0", "--data", data, "--split", "test", "--data-root", tmp_path)
    code, message = complaint(capsys, *words, "--on-error", "skip", "--output", tmp_path / "cache")
    assert code == 5
    assert "A picture in the index of the dataset has changed since it was stored." in message
    command = message.partition("next:")[2].strip().partition(" && ")[0].partition("   (")[0]
    assert command.startswith("rm -r ")
    subprocess.run(shlex.split(command), check=True)
    assert opened_anew(data, "test", data_root=tmp_path) == expected
