"""VCR reads as downloaded: tasks, conditioning, labels, boxes, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_mirrors import vcr_metadata, vcr_record, write_picture, write_vcr

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.vcr import question_of
from advl_pipeline.errors import DatasetError


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
    assert question_of(rationale.example_id) == "val-5"
    assert rationale.candidates[0].text == (
        "Is is Riley Jessie near wineglass ? Jessie likes thing5 1 . Everyone sees dog 5 0 ."
    )
    assert rationale.candidates[0].text[rationale.candidates[0].question_length :].startswith(" Jessie likes")
    assert rationale.image.boxes_R4.dtype == np.float32
    assert rationale.image.boxes_R4[1].tolist() == [4.5, 2.25, 24.5, 12.75]
    assert rationale.image.box_labels == ("person", "person", "wineglass", "dog")
    assert rationale.image.path.is_file()


def test_units_are_listed_once_in_order_of_appearance(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    dataset = open_vcr(tmp_path)
    images = [unit.unit_id for unit in dataset.image_units()]
    seen = dict.fromkeys(dataset[index].image.unit_id for index in range(len(dataset)))
    assert images == list(seen)
    assert len(images) == 6
    texts = dict.fromkeys(
        (candidate.text_unit.unit_id, candidate.text)
        for index in range(len(dataset))
        for candidate in dataset[index].candidates
    )
    assert [(unit.unit_id, unit.text) for unit in dataset.text_units()] == list(texts)
    units = dataset.text_units()
    assert units[-1].text == list(texts)[-1][1]


def test_unlabelled_test_conditions_rationales_on_every_answer(tmp_path: Path) -> None:
    write_vcr(tmp_path, [vcr_record(number, split="test", labelled=False) for number in range(3)], split="test")
    dataset = open_vcr(tmp_path, split="test")
    assert len(dataset) == 3 * 5
    assert sum(len(dataset[index].candidates) for index in range(5)) == 20
    assert dataset.example_ids[1:5] == tuple(f"test-0:vcr-qa2r-a{answer}" for answer in range(4))
    assert "likes thing0 3 ." in dataset[4].candidates[0].text
    assert all(dataset[index].label is None for index in range(5))


def test_conditioning_on_all_keeps_the_label_where_it_means_something(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    dataset = open_vcr(tmp_path, conditioning="all", tasks=["vcr-qa2r"])
    labels = [dataset[index].label for index in range(20, 24)]
    assert labels == [None, 1, None, None]


def test_tasks_can_be_restricted_and_digest_does_not_depend_on_them(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    one = open_vcr(tmp_path, tasks=["vcr-q2a"])
    assert one.tasks == ("vcr-q2a",)
    assert one.content_digest() == open_vcr(tmp_path).content_digest()
    assert one.content_digest() != open_vcr(tmp_path, text_style="uniter").content_digest()


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

    monkeypatch.setattr("advl_pipeline.datasets.vcr._rows", fail)
    dataset = open_vcr(tmp_path)
    assert len(dataset.example_ids) == 24


def spoil(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        record[field] = value

    return change


BAD_RECORDS = [
    (spoil("answer_label", 4), "answer_label is 4"),
    (spoil("rationale_label", -1), "rationale_label is -1"),
    (spoil("answer_label", True), "answer_label is True"),
    (spoil("answer_label", None), "'answer_label' is missing"),
    (spoil("img_fn", "../../etc/passwd.jpg"), "leaves the dataset's folder"),
    (spoil("img_fn", "/etc/passwd.jpg"), "leaves the dataset's folder"),
    (spoil("metadata_fn", "a/../../b.json"), "leaves the dataset's folder"),
    (spoil("annot_id", "val-0"), "field 'id' is 'val-0', which {file}:1 has already"),
    (spoil("question", [[9], "?"]), "has tag 9, the picture has 4 objects"),
    (spoil("question", [[-1], "?"]), "has tag -1"),
    (spoil("question", [[10004], "?"]), "has tag 10004"),
    (spoil("question", [{"a": 1}]), "neither a word nor a list of tags"),
    (spoil("question", []), "has no words"),
    (spoil("answer_choices", [["a"]] * 3), "not a list of 4 choices"),
    (spoil("rationale_choices", ["a"] * 4), "not a list of tokens"),
    (lambda record: record.update(img_fn="a.jpg", objects=["person", 3]), "'objects' is not a list of texts"),
    (spoil("img_fn", ["a.jpg"]), "'img_fn' is not a text"),
    (spoil("objects", ["person", "person", "wineglass", "cat"]), "objects differ from those of another question"),
]


@pytest.mark.parametrize(("change", "why"), BAD_RECORDS, ids=[why for _, why in BAD_RECORDS])
def test_a_bad_record_is_named_or_skipped(tmp_path: Path, change: Callable[[Any], None], why: str) -> None:
    good = records()
    bad = vcr_record(9)
    change(bad)
    file = write_vcr(tmp_path, good)
    lines = file.read_text().splitlines()
    lines[9] = json.dumps(bad)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DatasetError) as caught:
        open_vcr(tmp_path)
    assert caught.value.where == f"{file}:10"
    assert why.format(file=file) in caught.value.why
    dataset = open_vcr(tmp_path, on_error="skip")
    assert len(dataset) == 22
    assert [problem.line for problem in dataset.skipped] == [10]
    assert all("val-9:" not in example_id for example_id in dataset.example_ids)


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b'{"movie": "x", "obj', "the line is cut off"),
        (b'{"movie": \xff\xfe}\n', "not UTF-8"),
        (b"[1, 2]\n", "not an object"),
        (b"{'movie': 1}\n", "not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, tail: bytes, why: str) -> None:
    file = write_vcr(tmp_path, records(4))
    file.write_bytes(file.read_bytes() + tail)
    with pytest.raises(DatasetError) as caught:
        open_vcr(tmp_path)
    assert caught.value.where == f"{file}:5"
    assert why in caught.value.why
    assert len(open_vcr(tmp_path, on_error="skip")) == 8


BAD_METADATA: list[tuple[dict[str, Any], str]] = [
    ({"boxes": [[0, 0, 90, 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "outside the picture of 64x48"),
    ({"boxes": [[9, 0, 3, 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "negative or no size"),
    ({"boxes": [[0, 0, float("nan"), 10, 1]] + [[0, 0, 1, 1, 1]] * 3}, "not four finite numbers"),
    ({"boxes": [[0, 0, 1, 1, 1]]}, "4 names and 1 boxes"),
    ({"names": ["person", "dog", "wineglass", "dog"]}, "not the objects of the annotations"),
    ({"width": 128, "height": 96}, "its boxes are for a picture of 128x96, the picture is 64x48"),
    ({"width": 0}, "width of the picture is 0"),
]


@pytest.mark.parametrize(("change", "why"), BAD_METADATA, ids=[why for _, why in BAD_METADATA])
def test_bad_metadata_is_named_or_skipped(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    write_vcr(tmp_path, records())
    metadata = tmp_path / "vcr" / "vcr1images" / records()[4]["metadata_fn"]
    metadata.write_text(json.dumps(vcr_metadata(records()[4]) | change))
    dataset = open_vcr(tmp_path)
    with pytest.raises(DatasetError, match="malformed") as caught:
        dataset.image_units()
    assert why in caught.value.why
    assert f"{tmp_path / 'vcr' / 'val.jsonl'}:5" in caught.value.why
    skipping = open_vcr(tmp_path, on_error="skip")
    assert len(skipping) == 20
    assert len(skipping.skipped) == 1
    assert len(skipping.image_units()) == 5


@pytest.mark.parametrize(("content", "why"), [(b"", "is empty"), (b"not a picture", "not a readable picture")])
def test_a_bad_picture_is_named_or_skipped(tmp_path: Path, content: bytes, why: str) -> None:
    write_vcr(tmp_path, records())
    name = records()[6]["img_fn"]
    (tmp_path / "vcr" / "vcr1images" / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        open_vcr(tmp_path).image_units()
    assert name in caught.value.why
    assert why in caught.value.why
    assert len(open_vcr(tmp_path, on_error="skip")) == 20


def test_a_missing_picture_is_named_or_skipped(tmp_path: Path) -> None:
    write_vcr(tmp_path, records())
    name = records()[6]["img_fn"]
    (tmp_path / "vcr" / "vcr1images" / name).unlink()
    with pytest.raises(DatasetError, match="malformed") as caught:
        open_vcr(tmp_path).content_digest()
    assert f"{name} is missing" in caught.value.why
    assert len(open_vcr(tmp_path, on_error="skip")) == 20


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
    with pytest.raises(DatasetError, match="missing"):
        open_vcr(tmp_path)
