"""VQA v2 and VQA-CP v2 read as downloaded; vocabulary and soft targets follow the published rules."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import write_vqa, write_vqa_cp

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.vqa_answers import (
    answer_scores,
    build_vocabulary,
    parse_annotation,
    read_vocabulary,
    soft_target,
)

ASSETS = Path(__file__).parents[1] / "assets"


def open_vqa(root: Path, split: str, *, name: str = "vqa-v2", on_error: OnError = "fail") -> IndexedDataset:
    return open_dataset(name, split=split, data_root=root, on_error=on_error)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_vqa(tmp_path, split="train", count=60)
    write_vqa(tmp_path, split="val", count=30)
    write_vqa(tmp_path, split="test", count=9)
    return tmp_path


def rewrite(file: Path, key: str, change: Any) -> None:
    document = json.loads(file.read_text())
    change(document[key])
    file.write_text(json.dumps(document))


def test_the_published_list_counts_the_splits_that_the_published_models_count(tmp_path: Path) -> None:
    write_vqa(tmp_path, split="train", count=40)
    write_vqa(tmp_path, split="val", count=30)
    # 8 questions per main answer in train, too few, and 6 in val.
    with pytest.raises(DatasetError, match="no answer vocabulary") as caught:
        open_vqa(tmp_path, "train").label_names("vqa")
    assert "--answers" in caught.value.next_command
    published = open_dataset("vqa-v2", split="train", data_root=tmp_path, answer_list="published")
    assert set(published.label_names("vqa")) == {"yes", "no", "2", "red", "t shirt"}


def test_only_datasets_with_a_published_list_take_it_and_one_list_at_a_time(root: Path) -> None:
    with pytest.raises(ConfigError, match="no published answer list"):
        open_dataset("snli-ve", split="train", data_root=root, answer_list="published")
    with pytest.raises(ConfigError, match="--answers gives the list"):
        open_dataset("vqa-v2", split="train", data_root=root, answers=("yes",), answer_list="published")


def test_test_has_no_answers(root: Path) -> None:
    dataset = open_vqa(root, "test")
    assert (dataset[0].label, dataset[0].soft_label) == (None, ())
    assert dataset[0].image.path.parent.name == "test2015"
    with pytest.raises(DatasetError, match="no public answers"):
        dataset.ground_truth(dataset.example_ids[0])


def test_parts_of_val_by_published_lists(root: Path) -> None:
    folder = root / "vqa-v2"
    (folder / "minival.json").write_text(json.dumps([{"question_id": 2000000, "sent": ""}, {"question_id": 2003001}]))
    (folder / "counterexamples.json").write_text("[2000001, 2000002]")
    (folder / "hard.json").write_text("[2000002, 2001000]")
    assert open_vqa(root, "minival").example_ids == ("2000000", "2003001")
    assert len(open_vqa(root, "nominival")) == 28
    assert open_vqa(root, "ce-counterexamples").example_ids == ("2000001", "2000002")
    assert len(open_vqa(root, "ce-easy")) == 27
    (folder / "hard.json").write_text('{"a": 1}')
    with pytest.raises(DatasetError, match="malformed"):
        open_vqa(root, "ce-hard")


BAD_QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"question_id": "7"}, "not a whole number"),
    ({"question_id": 2000000}, "occurs twice"),
    ({"image_id": None}, "'image_id'"),
    ({"question": " "}, "'question'"),
]
BAD_ANNOTATIONS: list[tuple[dict[str, Any], str]] = [
    ({"question_id": 1}, "has no question"),
    ({"answers": []}, "not a list of 10 answers"),
    ({"answers": [{"answer": 3}]}, "an answer has no text"),
    ({"answer_type": "colour"}, "answer_type 'colour' is unknown"),
]


def test_bad_items_are_named_or_skipped(root: Path) -> None:
    bad = {
        "v2_OpenEnded_mscoco_val2014_questions": ("questions", BAD_QUESTIONS),
        "v2_mscoco_val2014_annotations": ("annotations", BAD_ANNOTATIONS),
    }
    for stem, (key, changes) in bad.items():
        file = root / "vqa-v2" / f"{stem}.json"
        content = file.read_bytes()
        # Each spoils another item, and costs its question.
        document = json.loads(content)
        for item, (change, _) in zip(document[key][5:], changes, strict=False):
            item.update(change)
        file.write_text(json.dumps(document))
        with pytest.raises(DatasetError) as caught:
            open_vqa(root, "val")
        assert str(root / "vqa-v2") in caught.value.where
        skipping = open_vqa(root, "val", on_error="skip")
        assert len(skipping) == 30 - len(changes)
        for _, why in [*changes, (None, "has no annotation" if key == "annotations" else "has no question")]:
            assert any(why in problem.why for problem in skipping.skipped), why
        file.write_bytes(content)


def test_vqa_cp_refuses_an_unknown_picture_folder(tmp_path: Path) -> None:
    write_vqa_cp(tmp_path)
    file = tmp_path / "vqa-cp-v2" / "vqacp_v2_test_questions.json"
    items = json.loads(file.read_text())
    items[0]["coco_split"] = "../../secret"
    file.write_text(json.dumps(items))
    with pytest.raises(DatasetError, match="malformed") as caught:
        open_vqa(tmp_path, "test", name="vqa-cp-v2")
    assert "coco_split" in caught.value.why


def test_vocabulary_and_targets_match_the_published_program() -> None:
    expected = json.loads((ASSETS / "vqa_vocab" / "expected_butd_vocab_targets.json").read_text())
    file = ASSETS / "vqa_eval" / "v2_mscoco_synthetic_annotations.json"
    annotations = [parse_annotation(item) for item in json.loads(file.read_text())["annotations"]]
    for name, wanted in expected.items():
        most_common = [(answer, 1) for _, answer, _ in annotations]
        names = build_vocabulary(most_common, min_occurrences=int(name.removeprefix("min_occ_")))
        assert sorted(names) == wanted["vocab_sorted"]
        index_of = {answer: label for label, answer in enumerate(names)}
        for question_id, _, truth in annotations:
            target = soft_target(answer_scores(Counter(truth.answers)), index_of)
            assert {names[label]: score for label, score in target} == wanted["targets"][str(question_id)]


def test_vocabulary_is_read_in_the_order_of_its_file(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    for content in (["no", "yes", "red"], {"red": 2, "no": 0, "yes": 1}, {"1": "yes", "0": "no", "2": "red"}):
        file.write_text(json.dumps(content))
        assert read_vocabulary(file) == ("no", "yes", "red")
    dataset = open_dataset("vqa-v2", split="val", data_root=root, answers=file)
    assert dataset[0].label == 1
    for content in ([], {"a": 0, "b": 0}, {"a": 0, "b": 2}, ["a", "a"], ["a", 3], 5):
        file.write_text(json.dumps(content))
        with pytest.raises(DatasetError):
            read_vocabulary(file)


def test_duplicate_entries_count_as_one_annotator(tmp_path: Path) -> None:
    write_vqa(tmp_path, split="train", count=3)
    file = tmp_path / "vqa-v2" / "v2_mscoco_train2014_annotations.json"

    def double(items: list[dict[str, Any]]) -> None:
        items[0]["answers"][1] = dict(items[0]["answers"][0])

    rewrite(file, "annotations", double)
    truth = open_vqa(tmp_path, "train").ground_truth("1000000")
    assert truth.entries == (0, 0, 2, 3, 4, 5, 6, 7, 8, 9)


def test_skipping_needs_something_left(root: Path) -> None:
    file = root / "vqa-v2" / "v2_OpenEnded_mscoco_test2015_questions.json"
    rewrite(file, "questions", lambda items: [item.update(question="") for item in items])
    with pytest.raises(DatasetError, match="no usable item") as caught:
        open_vqa(root, "test", on_error="skip")
    assert "9 items were skipped" in caught.value.why
