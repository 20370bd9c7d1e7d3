"""VCR reads as downloaded: tasks, given answers, labels, boxes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import vcr_record, write_picture, write_snli_ve, write_vcr

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.registry import open_dataset


def open_vcr(root: Path, *, on_error: OnError = "fail", split: str = "val", **options: Any) -> IndexedDataset:
    return open_dataset("vcr", split=split, data_root=root, on_error=on_error, **options)


def records(count: int = 12) -> list[dict[str, Any]]:
    return [vcr_record(number) for number in range(count)]


def test_tasks_can_be_restricted_and_digest_does_not_depend_on_them(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    restricted = open_vcr(tmp_path, tasks=["vcr-q2a"])
    assert restricted.tasks == ("vcr-q2a",)
    assert restricted.content_digest() == open_vcr(tmp_path).content_digest()
    assert restricted.content_digest() != open_vcr(tmp_path, text_style="uniter").content_digest()
    write_snli_ve(tmp_path)
    uniter, meter = (
        open_dataset("snli-ve", split="test", data_root=tmp_path, label_order=order) for order in ("uniter", "meter")
    )
    assert uniter.content_digest() == meter.content_digest()
    assert all("premise" not in unit.text for unit in uniter.text_units())


def test_digest_follows_content_not_place_or_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_vcr(tmp_path / name, records())
    first = open_vcr(tmp_path / "a").content_digest()
    assert open_vcr(tmp_path / "b").content_digest() == first
    picture = tmp_path / "b" / "vcr" / "vcr1images" / records()[0]["img_fn"]
    write_picture(picture, shade=200)
    changed_picture = open_vcr(tmp_path / "b").content_digest()
    assert changed_picture != first
    metadata = picture.with_suffix(".json")
    metadata.write_text(metadata.read_text().replace("0.9", "0.8"))
    assert open_vcr(tmp_path / "b").content_digest() not in (first, changed_picture)


def test_an_opened_dataset_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    dataset = open_vcr(tmp_path)
    expected = dataset[7]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[7].candidates == expected.candidates
    assert copy[7].image.unit_id == expected.image.unit_id


def test_a_shortcut_set_uses_the_same_pictures(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    changed = records()
    changed[0]["question"] = ["Why", [10001], "[MASK]", "?"]
    write_vcr(tmp_path, changed, file="shortcut/adversarial_based/val_adv_rmtop1.jsonl")
    shifted = open_vcr(tmp_path, split="adv-rmtop1")
    assert shifted[0].candidates[0].text.startswith("Why [MASK] [MASK] ?")
    assert shifted[0].image.unit_id == open_vcr(tmp_path)[0].image.unit_id
    assert shifted.example_ids == open_vcr(tmp_path).example_ids


def test_an_absent_dataset_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        open_vcr(tmp_path)
    assert caught.value.exit_code == 5
    assert str(tmp_path / "vcr") in caught.value.where
    assert "advl datasets card vcr" in caught.value.next_command
    (tmp_path / "vcr").mkdir()
    with pytest.raises(DatasetError, match="not there"):
        open_vcr(tmp_path)
