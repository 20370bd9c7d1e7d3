"""Pictures in Parquet of the hub are fetched when they are needed: a subset costs its own row groups."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

pytest.importorskip("datasets")

from hub_server import serve_hub
from hub_twins import Sample, colour_samples, write_twin

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.packages import data_files
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.own import remote_pictures
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.views import Selected
from advl_pipeline.teachers.text_units import covering_texts

PICTURE_BYTES = 100_000
GROUP_ROWS = 4


def large_samples(count: int) -> list[Sample]:
    """Return samples whose pictures are large beside their texts: noise follows what decoders read."""
    noise = random.Random(0)
    return [
        Sample(sample.picture + noise.randbytes(PICTURE_BYTES), sample.question, sample.choices, sample.right)
        for sample in colour_samples(count)
    ]


class Counted:
    """Counts the bytes that are read of files of this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_bytes = 0
        counted = self

        class File(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                counted.num_bytes += (num_read := super().readinto(buffer) or 0)
                return num_read

            def read(self, size: int = -1) -> bytes:
                counted.num_bytes += len(content := super().read(size) or b"")
                return content

        monkeypatch.setattr(remote_pictures, "open_file", lambda place: File(place, "rb"))


@pytest.mark.parametrize("card", ["snli-ve-hf", "gqa"])
def test_a_subset_reads_its_own_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str) -> None:
    samples = large_samples(160)
    write_twin(tmp_path, card, samples, group_rows=GROUP_ROWS)
    counted = Counted(monkeypatch)
    train = open_dataset(card, split="train", data_root=tmp_path)
    drawn = Selected(train, nested_subset(train, 3, 0))
    train.content_digest()
    assert counted.num_bytes < 0.1 * PICTURE_BYTES * len(samples), "rows are read without their pictures"
    before = counted.num_bytes
    for dataset in (train, drawn):
        covering_texts(dataset, 0.5)
    assert counted.num_bytes == before, "texts are chosen without a picture"
    pictures = drawn.image_units()
    assert {picture.path.read_bytes() for picture in pictures} <= {sample.picture for sample in samples}
    groups = len(pictures) * GROUP_ROWS * PICTURE_BYTES
    assert counted.num_bytes - before < 1.2 * groups < PICTURE_BYTES * len(train.question_table().question_ids) / 2
    kept = counted.num_bytes
    open_dataset(card, split="train", data_root=tmp_path)
    drawn.image_units()
    assert counted.num_bytes == kept, "what is here is not read again"


@pytest.mark.parametrize("card", ["aokvqa-rationales", "gqa", "naturalbench", "whatsup"])
def test_pictures_and_identity_are_those_of_the_whole_set(tmp_path: Path, card: str) -> None:
    """As the same rows have them without a revision, which are read with their pictures."""
    write_twin(tmp_path, card, colour_samples(24), group_rows=5)
    whole_card = tmp_path / "whole.toml"
    whole_card.write_text(re.sub(r"@[0-9a-f]{7,40}\"", '"', data_files("cards")[card].read_text()))
    for split in load_card(card).splits:
        held, whole = (open_dataset(name, split=split, data_root=tmp_path) for name in (card, str(whole_card)))
        assert held.example_ids == whole.example_ids
        if split == "train":
            assert nested_subset(held, 3, 0) == nested_subset(whole, 3, 0)
        for example, other in zip(map(held.__getitem__, range(len(held))), whole, strict=False):
            assert (example.image.unit_id, example.label) == (other.image.unit_id, other.label)
            assert example.candidates == other.candidates
        assert {unit.unit_id for unit in held.image_units()} == {unit.unit_id for unit in whole.image_units()}


def test_pictures_for_which_the_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_twin(tmp_path, "cv-bench", large_samples(40), group_rows=GROUP_ROWS)
    test = open_dataset("cv-bench", split="test", data_root=tmp_path)
    free = 5 * GROUP_ROWS * PICTURE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2 * free, free, free))
    with pytest.raises(DatasetError) as caught:
        test.image_units()
    assert (caught.value.what, caught.value.exit_code) == ("The dataset does not fit on the disk.", 5)
    assert "--shots" in caught.value.next_command
    assert not list(tmp_path.rglob("pictures/*")), "nothing is half written"
    # A part of it fits, and what is here needs no more room.
    part = Selected(test, nested_subset(test, 3, 0))
    assert len(part.image_units()) == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2 * free, 2 * free, 0))
    assert len(part.image_units()) == 3


def test_pictures_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is gone, and there is no network: rows are still known, and a picture says where it is held."""
    write_twin(tmp_path, "cv-bench", large_samples(8), group_rows=GROUP_ROWS)
    test = open_dataset("cv-bench", split="test", data_root=tmp_path)
    assert test[0].image.path.is_file()
    shutil.rmtree(tmp_path / "nyu-visionx")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError) as caught:
        test.image_units()
    assert caught.value.what == "Pictures of the dataset cannot be fetched."
    assert "HF_HUB_OFFLINE is set" in caught.value.why
    assert "test-00000-of-00001.parquet, row group" in caught.value.where
    assert "same command again" in caught.value.next_command


PART = """
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.views import Selected

train = open_dataset("snli-ve-hf", split="train")
Selected(train, nested_subset(train, 4, 0)).image_units()
"""


def test_a_subset_fetches_its_part_from_the_hub(tmp_path: Path) -> None:
    """Over HTTP, as the libraries of the hub ask; `test_public_sets_end_to_end.py` does by commands."""
    write_twin(tmp_path / "copy", "snli-ve-hf", large_samples(200), group_rows=GROUP_ROWS)
    copy = tmp_path / "copy/sedrickkeh/snli-ve"
    files = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*.parquet")}
    with serve_hub() as hub:
        hub.repositories["datasets/sedrickkeh/snli-ve"] = files
        hub.commits[str(load_card("snli-ve-hf").facts["files"]).partition("@")[2]] = files
        # The libraries of the hub read where it is once, when they are imported.
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "ADVL_DATA": str(tmp_path / "data")}
        subprocess.run([sys.executable, "-c", PART], env=os.environ | home, check=True)
        sent = sum(count for path, count in hub.sent.items() if path.endswith(".parquet"))
    assert 4 * PICTURE_BYTES < sent < 0.25 * sum(map(len, files.values()))
    assert len(list((tmp_path / "data").rglob("pictures/*"))) <= 4 * GROUP_ROWS
