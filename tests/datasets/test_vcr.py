"""VCR reads as downloaded: tasks, given answers, labels, boxes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_mirrors import vcr_record, write_picture, write_vcr

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.vcr import annotation_of


def open_vcr(root: Path, *, on_error: OnError = "fail", split: str = "val", **options: Any) -> IndexedDataset:
    return open_dataset("vcr", split=split, data_root=root, on_error=on_error, **options)


def records(count: int = 12) -> list[dict[str, Any]]:
    return [vcr_record(number) for number in range(count)]


def test_both_tasks_with_labels_boxes_and_context(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    dataset = open_vcr(tmp_path)
    assert dataset.tasks == ("vcr-q2a", "vcr-qa2r")
    assert len(dataset) == 24
    assert dataset.example_ids[:3] == ("val-0:vcr-q2a", "val-0:vcr-qa2r", "val-1:vcr-q2a")
    answer, rationale = dataset[10], dataset[11]
    assert (answer.label, rationale.label) == (1, 1)
    assert answer.stratum == "yes/no"
    assert annotation_of(rationale.example_id) == "val-5"
    assert rationale.candidates[0].text == (
        "Is is Riley Jessie near wineglass ? Jessie likes thing5 1 . Everyone sees dog 5 0 ."
    )
    assert rationale.candidates[0].text[rationale.candidates[0].question_length :].startswith(" Jessie likes")
    assert rationale.image.boxes_R4.dtype == np.float32
    assert rationale.image.boxes_R4[1].tolist() == [4.5, 2.25, 24.5, 12.75]
    assert rationale.image.box_labels == ("person", "person", "wineglass", "dog")
    assert rationale.image.path.is_file()


def test_unlabelled_test_conditions_rationales_on_every_answer(tmp_path: Path) -> None:
    write_vcr(tmp_path, [vcr_record(number, split="test", labelled=False) for number in range(3)], split="test")
    dataset = open_vcr(tmp_path, split="test")
    assert len(dataset) == 3 * 5
    assert sum(len(dataset[index].candidates) for index in range(5)) == 20
    assert dataset.example_ids[1:5] == tuple(f"test-0:vcr-qa2r-a{answer}" for answer in range(4))
    assert "likes thing0 3 ." in dataset[4].candidates[0].text
    assert all(dataset[index].label is None for index in range(5))


def test_rationales_given_every_answer_keep_the_label_where_it_means_something(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    dataset = open_vcr(tmp_path, every_answer=True, tasks=["vcr-qa2r"])
    labels = [dataset[index].label for index in range(20, 24)]
    assert labels == [None, 1, None, None]


def test_tasks_can_be_restricted_and_digest_does_not_depend_on_them(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    restricted = open_vcr(tmp_path, tasks=["vcr-q2a"])
    assert restricted.tasks == ("vcr-q2a",)
    assert restricted.content_digest() == open_vcr(tmp_path).content_digest()
    assert restricted.content_digest() != open_vcr(tmp_path, text_style="uniter").content_digest()


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


def test_reopening_parses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vcr(tmp_path, records())
    open_vcr(tmp_path)

    def fail(*_: Any) -> None:
        raise AssertionError("the annotation file was scanned again")

    monkeypatch.setattr("advl_pipeline.datasets.vcr._item", fail)
    dataset = open_vcr(tmp_path)
    assert len(dataset.example_ids) == 24


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
