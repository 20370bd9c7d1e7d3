"""Published sets read as downloaded, by their names, and looked at by `advl datasets`."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import advl, printed
from dataset_mirrors import (
    vcr_record,
    write_captions,
    write_lines,
    write_picture,
    write_snli_ve,
    write_vcr,
    write_vqa,
    write_vqa_cp,
)
from hypothesis import given
from hypothesis import strategies as st
from own_rows import refusal

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets import spec
from advl_pipeline.datasets.cards import Card, load_card
from advl_pipeline.datasets.check import dataset_card, run_check
from advl_pipeline.datasets.config import CheckConfig
from advl_pipeline.datasets.formats import PublishedDataset
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import nested_subset, read_id_list
from advl_pipeline.datasets.registry import dataset_names, find_dataset, known_dataset, open_dataset
from advl_pipeline.datasets.roots import index_folder, is_safe_name
from advl_pipeline.datasets.vqa_answers import (
    answer_scores,
    build_vocabulary,
    parse_annotation,
    read_vocabulary,
    soft_target,
)

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for datasets, in whose name are spaces and other letters."""
    return tmp_path / "my däta 数据"


# Names and places.


def test_indices_lie_with_the_data_or_where_the_variable_says(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snli_ve(root)
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("ADVL_INDEX", str(elsewhere))
    open_dataset("snli-ve", split="test", data_root=root)
    assert not (root / ".index").exists()
    assert any(elsewhere.rglob("*.arrow"))
    monkeypatch.delenv("ADVL_INDEX")
    open_dataset("snli-ve", split="test", data_root=root)
    assert any((root / ".index").rglob("*.arrow"))
    assert index_folder(root, root / "a" / "vcr") != index_folder(root, root / "b" / "vcr")


@given(parts=st.lists(st.sampled_from(["a", "b.jpg", "..", "", ".", "c@3.jpg", "é"]), min_size=1, max_size=5))
def test_safe_names_stay_inside(parts: list[str]) -> None:
    name, root = "/".join(parts), Path("/data/vcr")
    assert not is_safe_name(name) or (root / name).resolve().is_relative_to(root)
    assert not any(map(is_safe_name, ["", "/a", "../a", "a/../b", "a/..", "C:/a", "a\\b", "a\0b", ".."]))


def test_a_dataset_that_is_not_there_says_where_it_belongs_and_how_to_get_it(root: Path) -> None:
    assert refusal("scenes-vqa", data_root=root).next_command == "advl scenes build"
    for _ in range(2):
        error = refusal("vcr", data_root=root)
        assert (error.exit_code, str(root / "vcr") in error.where) == (5, True)
        assert "advl datasets card vcr" in error.next_command
        (root / "vcr").mkdir(parents=True, exist_ok=True)


# VCR and SNLI-VE.


def open_vcr(root: Path, split: str = "val", **options: Any) -> IndexedDataset:
    return open_dataset("vcr", split=split, data_root=root, **options)


def records() -> list[dict[str, Any]]:
    return [vcr_record(number) for number in range(12)]


def test_the_digest_depends_on_what_is_read_and_not_on_the_tasks_or_the_order_of_classes(root: Path) -> None:
    write_vcr(root, records())
    restricted = open_vcr(root, tasks=["vcr-q2a"])
    assert restricted.tasks == ("vcr-q2a",)
    assert restricted.content_digest() == open_vcr(root).content_digest()
    assert restricted.content_digest() != open_vcr(root, text_style="uniter").content_digest()
    write_snli_ve(root)
    uniter, meter = (
        open_dataset("snli-ve", split="test", data_root=root, label_order=order) for order in ("uniter", "meter")
    )
    assert uniter.content_digest() == meter.content_digest()
    assert all("premise" not in unit.text for unit in uniter.text_units())


def test_the_digest_follows_content_not_place_or_time(root: Path) -> None:
    for name in ("a", "b"):
        write_vcr(root / name, records())
    digests = [open_vcr(root / name).content_digest() for name in "ab"]
    assert digests[0] == digests[1]
    picture = root / "b" / "vcr" / "vcr1images" / records()[0]["img_fn"]
    write_picture(picture, shade=200)
    digests.append(open_vcr(root / "b").content_digest())
    metadata = picture.with_suffix(".json")
    metadata.write_text(metadata.read_text().replace("0.9", "0.8"))
    digests.append(open_vcr(root / "b").content_digest())
    assert len({*digests}) == 3


def test_a_shortcut_set_uses_the_same_pictures(root: Path) -> None:
    write_vcr(root, records())
    changed = records()
    changed[0]["question"] = ["Why", [10001], "[MASK]", "?"]
    write_vcr(root, changed, file="shortcut/adversarial_based/val_adv_rmtop1.jsonl")
    shifted = open_vcr(root, split="adv-rmtop1")
    assert shifted[0].candidates[0].text.startswith("Why [MASK] [MASK] ?")
    assert shifted[0].image.unit_id == open_vcr(root)[0].image.unit_id
    assert shifted.example_ids == open_vcr(root).example_ids


# VQA.


def open_vqa(root: Path, split: str, **options: Any) -> IndexedDataset:
    return open_dataset("vqa-v2", split=split, data_root=root, **options)


def test_the_published_list_counts_the_splits_that_the_published_models_count(root: Path) -> None:
    write_vqa(root, split="train", count=40)
    write_vqa(root, split="val", count=30)
    # 8 questions per main answer in train, too few, and 6 in val.
    with pytest.raises(DatasetError, match="no answer vocabulary") as caught:
        open_vqa(root, "train").label_names("vqa")
    assert "--answers" in caught.value.next_command
    published = open_vqa(root, "train", answer_list="published")
    assert set(published.label_names("vqa")) == {"yes", "no", "2", "red", "t shirt"}
    with pytest.raises(ConfigError, match="--answers gives the list"):
        open_vqa(root, "train", answers=("yes",), answer_list="published")
    with pytest.raises(ConfigError, match="no published answer list"):
        open_dataset("snli-ve", split="train", data_root=root, answer_list="published")


def test_test_has_no_answers_and_something_must_be_left_of_it(root: Path) -> None:
    write_vqa(root, split="test", count=9)
    dataset = open_vqa(root, "test")
    assert (dataset[0].label, dataset[0].soft_label) == (None, ())
    assert dataset[0].image.path.parent.name == "test2015"
    with pytest.raises(DatasetError, match="no public answers"):
        dataset.ground_truth(dataset.example_ids[0])
    file = root / "vqa-v2" / "v2_OpenEnded_mscoco_test2015_questions.json"
    file.write_text(re.sub(r'"Is it number \d+\?"', '""', file.read_text()))
    error = refusal("vqa-v2", "test", data_root=root, on_error="skip")
    assert ("no usable item" in error.what, "9 items were skipped" in error.why) == (True, True)
    assert len(pickle.loads(pickle.dumps(error)).problems) == 9, "another process may open it"


def test_parts_of_val_by_published_lists(root: Path) -> None:
    write_vqa(root, split="val", count=30)
    folder = root / "vqa-v2"
    (folder / "minival.json").write_text(json.dumps([{"question_id": 2000000, "sent": ""}, {"question_id": 2003001}]))
    (folder / "counterexamples.json").write_text("[2000001, 2000002]")
    (folder / "hard.json").write_text("[2000002, 2001000]")
    assert open_vqa(root, "minival").example_ids == ("2000000", "2003001")
    assert len(open_vqa(root, "nominival")) == 28
    assert open_vqa(root, "ce-counterexamples").example_ids == ("2000001", "2000002")
    assert len(open_vqa(root, "ce-easy")) == 27
    (folder / "hard.json").write_text('{"a": 1}')
    assert "malformed" in refusal("vqa-v2", "ce-hard", data_root=root).what


BAD_ITEMS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "questions": [
        ({"question_id": "7"}, "not a whole number"),
        ({"question_id": 2000000}, "occurs twice"),
        ({"image_id": None}, "'image_id'"),
        ({"question": " "}, "'question'"),
    ],
    "annotations": [
        ({"question_id": 1}, "has no question"),
        ({"answers": []}, "not a list of 10 answers"),
        ({"answers": [{"answer": 3}]}, "an answer has no text"),
        ({"answer_type": "colour"}, "answer_type 'colour' is unknown"),
    ],
}


@pytest.mark.parametrize("key", BAD_ITEMS)
def test_bad_items_are_named_or_skipped(root: Path, key: str) -> None:
    write_vqa(root, split="val", count=30)
    (file,) = (root / "vqa-v2").glob(f"*{key}.json")
    document, changes = json.loads(file.read_text()), BAD_ITEMS[key]
    # Each spoils another item, and costs its question.
    for item, (change, _) in zip(document[key][5:], changes, strict=False):
        item.update(change)
    file.write_text(json.dumps(document))
    assert str(root / "vqa-v2") in refusal("vqa-v2", "val", data_root=root).where
    skipping = open_vqa(root, "val", on_error="skip")
    assert len(skipping) == 30 - len(changes)
    for _, why in [*changes, (None, "has no annotation" if key == "annotations" else "has no question")]:
        assert any(why in problem.why for problem in skipping.skipped), why


def test_vqa_cp_refuses_an_unknown_picture_folder(root: Path) -> None:
    write_vqa_cp(root, count=6)
    file = root / "vqa-cp-v2" / "vqacp_v2_test_questions.json"
    file.write_text(file.read_text().replace("train2014", "../../secret"))
    assert "coco_split" in refusal("vqa-cp-v2", "test", data_root=root).why


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
    write_vqa(root, split="val", count=3)
    file = tmp_path / "answers.json"
    for content in (["no", "yes", "red"], {"red": 2, "no": 0, "yes": 1}, {"1": "yes", "0": "no", "2": "red"}):
        file.write_text(json.dumps(content))
        assert read_vocabulary(file) == ("no", "yes", "red")
    assert open_vqa(root, "val", answers=file)[0].label == 1
    for content in ([], {"a": 0, "b": 0}, {"a": 0, "b": 2}, ["a", "a"], ["a", 3], 5):
        file.write_text(json.dumps(content))
        with pytest.raises(DatasetError):
            read_vocabulary(file)


def test_duplicate_entries_count_as_one_annotator(root: Path) -> None:
    write_vqa(root, split="train", count=3)
    file = root / "vqa-v2" / "v2_mscoco_train2014_annotations.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["answers"][1] = document["annotations"][0]["answers"][0]
    file.write_text(json.dumps(document))
    assert open_vqa(root, "train").ground_truth("1000000").entries == (0, 0, 2, 3, 4, 5, 6, 7, 8, 9)


# The built-in corpus.


def test_captions_with_phrases_and_boxes(root: Path) -> None:
    write_captions(root)
    dataset = open_dataset("scenes-captions", split="train", data_root=root)
    assert (len(dataset), len(dataset.image_units()), len(dataset.text_units())) == (6, 3, 1)
    example = dataset[1]
    named = [(example.candidates[0].text[tag.start : tag.end], tag.box) for tag in example.candidates[0].tags]
    assert named == [("cat", 0), ("red dog", 1)]
    assert example.image.boxes_R4.tolist() == [[1, 2, 11, 12], [20, 3, 30, 13]]
    assert example.label is None
    np.testing.assert_array_equal(dataset.question_table().cells, np.zeros(6))


def test_the_boxes_of_a_picture_must_be_there(root: Path) -> None:
    write_snli_ve(root / "scenes", name="test", count=4)
    boxes = root / "scenes" / "snli-ve" / "boxes_test.jsonl"
    lines = [
        {"image": f"flickr30k_images/100000000{picture}.jpg", "width": 64, "height": 48, "boxes": [[0, 0, 5, 5]]}
        for picture in (1, 2)
    ]
    write_lines(boxes, lines)
    dataset = open_dataset("scenes-snli-ve", split="test", data_root=root)
    assert [len(unit.boxes_R4) for unit in dataset.image_units()] == [1, 1]
    for spoilt, where, why in (
        (lines[:1], "", "no line in the file of boxes"),
        ([*lines, lines[0]], f"{boxes}:3", "a second line"),
        ([lines[0] | {"image": "/etc/x.jpg"}], f"{boxes}:1", "leaves the dataset's folder"),
    ):
        write_lines(boxes, spoilt)
        error = refusal("scenes-snli-ve", "test", data_root=root)
        assert why in error.why
        assert where in ("", error.where)


# `advl datasets`: what is there, what is missing, what is damaged; subsets others can reuse.


def test_what_is_there_and_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, _ = printed(capsys, "datasets", "check", "vcr", "--data-root", tmp_path, code=5)
    assert out.count(" missing ") == len(load_card("vcr").splits)
    assert "next: advl datasets card vcr" in out
    write_vcr(tmp_path, [vcr_record(number) for number in range(6)])
    out, _ = printed(capsys, "datasets", "check", "vcr", "--data-root", tmp_path, "--json")
    splits = {split["split"]: split for split in json.loads(out)["splits"]}
    assert splits["train"]["status"] == "missing"
    val = splits["val"]
    assert (val["status"], val["num_items"], val["num_pictures"], val["problems"]) == ("differs", 6, 3, [])
    assert val["notes"] == [
        "items: 6 found, the card says 26,534",
        "pictures: 3 found, the card says 9,929",
    ]
    out, _ = printed(capsys, "datasets", "check", "vcr", "--data-root", tmp_path)
    assert "6 items, 3 pictures, 0 problems" in out
    assert str(tmp_path / "vcr" / "train.jsonl") in out


def test_damage_is_listed_and_counted_and_seen_in_pictures_by_deep(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    records = [vcr_record(number) for number in range(60)]
    file = write_vcr(tmp_path, records)
    pictures = tmp_path / "vcr" / "vcr1images"
    cut, metadata = pictures / records[32]["img_fn"], pictures / records[34]["metadata_fn"]
    cut.write_bytes(cut.read_bytes()[:-200])
    metadata.write_text(metadata.read_text().replace('"width": 64', '"width": 65'))
    words = ("datasets", "check", "vcr", "--split", "val", "--data-root", tmp_path)
    assert "60 items, 30 pictures, 0 problems" in printed(capsys, *words)[0]
    spoiled = [record | {"answer_label": 9} if number < 30 else record for number, record in enumerate(records)]
    file.write_text("".join(json.dumps(record) + "\n" for record in spoiled))
    (pictures / records[40]["img_fn"]).unlink()
    (pictures / records[42]["metadata_fn"]).write_bytes(b"")
    for deep, num_problems in ((), 32), (("--deep",), 34):
        out, _ = printed(capsys, *words, *deep, "--json", code=5)
        (val,) = json.loads(out)["splits"]
        assert (val["status"], len(val["problems"]), val["problems"][0]["line"]) == ("malformed", num_problems, 1)
    reasons = "\n".join(problem["why"] for problem in val["problems"])
    assert "truncated" in reasons.lower()
    assert "boxes are for a picture of 65x48" in reasons
    _, out, _ = advl(capsys, *words)
    assert "... 12 more (--json lists all)" in out


def test_a_broken_document_is_malformed_not_missing(tmp_path: Path) -> None:
    write_vqa(tmp_path, split="val")
    file = tmp_path / "vqa-v2" / "v2_mscoco_val2014_annotations.json"
    file.write_text(file.read_text()[:-5])
    (split,) = run_check(CheckConfig(name="vqa-v2", split=("val",), data_root=tmp_path)).splits
    assert split.status == "malformed"
    assert "cut off" in split.problems[0].why


def test_every_dataset_has_a_card_and_is_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_vqa_cp(tmp_path)
    out, _ = printed(capsys, "datasets", "list", "--data-root", tmp_path, "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows) == set(dataset_names())
    assert rows["vqa-cp-v2"]["present"]
    assert not rows["vcr"]["present"]
    for name in dataset_names():
        card = dataset_card(name)
        assert card.title == rows[name]["title"]
        assert card.facts["licence"]
        assert "train" in find_dataset(name).splits or card.facts["evaluate_only"]
    for name in ("vcr", "vqa-v2", "vqa-cp-v2", "vqa-vs", "snli-ve"):
        for split, facts in load_card(name).splits.items():
            assert facts.get("annotations") or facts.get("questions"), f"{name} {split}"
    code, out, _ = advl(capsys, "datasets", "card", "vcr")
    assert (code, rows["vcr"]["title"] in out) == (0, True)
    code, out, _ = advl(capsys, "datasets", "card", "scenes-vqa", "--json")
    assert json.loads(out)["licence"].strip().startswith("Artwork")


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        *((name, True) for name in ("daquar", "flickr-captions", "scienceqa", "vsr")),
        # Results are reported on val, or test has no public labels, or there is none.
        *((name, False) for name in ("vcr", "vqa-v2", "aokvqa", "gqa", "sugarcrepe", "scenes-vcr")),
    ],
)
def test_val_decides_when_a_run_ends_if_results_are_reported_on_test(name: str, decides: bool) -> None:
    known = known_dataset(name)
    assert known is not None
    assert known.val_decides == decides


def test_the_card_of_a_plug_in_may_be_no_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"title": "Mine", "format": "mine", "folder": "mine", "splits": {"train": {"items": 3}}}
    card = Card(name="mine", facts=facts)
    mine = PublishedDataset(name="mine", card=card, tasks=("classes",), splits=("train",))
    point = SimpleNamespace(name="mine", load=lambda: mine)
    monkeypatch.setattr(spec, "entry_points", lambda group: [point])
    code, out, _ = advl(capsys, "datasets", "card", "mine")
    assert (code, json.loads(out)) == (0, facts)


def test_unknown_names_list_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("card", "vcrr"), ("check", "vcrr"), ("check", "vcr", "--split", "vall")):
        assert "did you mean" in printed(capsys, "datasets", *words, code=2)[1]


def test_a_subset_is_written_for_reuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_vcr(tmp_path, [vcr_record(number) for number in range(32)])
    file = tmp_path / "subset.json"
    arguments = ["subset", "vcr", "--split", "val", "--shots", 8, "--seed", 1, "--output", file]
    out, _ = printed(capsys, "datasets", *arguments, "--data-root", tmp_path)
    assert "8 questions, 16 examples" in out
    dataset = open_dataset("vcr", split="val", data_root=tmp_path)
    assert read_id_list(file).example_ids == nested_subset(dataset, 8, seed=1)
