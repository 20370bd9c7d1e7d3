"""Datasets by name: where they are looked for, what is refused, and captions of the built-in corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_mirrors import vcr_record, write_captions, write_lines, write_snli_ve, write_vcr
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.cards import card_names, load_card
from advl_pipeline.datasets.registry import dataset_names, find_dataset, open_dataset
from advl_pipeline.datasets.roots import index_folder, is_safe_name, resolve_data_root


def test_the_data_root_is_given_or_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADVL_DATA", raising=False)
    assert resolve_data_root(None) == Path("datasets")
    monkeypatch.setenv("ADVL_DATA", "/somewhere")
    assert resolve_data_root(None) == Path("/somewhere")
    assert resolve_data_root(Path("/given")) == Path("/given")


def test_indices_lie_with_the_data_or_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snli_ve(tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("ADVL_INDEX", str(elsewhere))
    open_dataset("snli-ve", split="test", data_root=tmp_path / "data")
    assert not (tmp_path / "data" / ".index").exists()
    assert any(elsewhere.rglob("*.arrow"))
    monkeypatch.delenv("ADVL_INDEX")
    open_dataset("snli-ve", split="test", data_root=tmp_path / "data")
    assert any((tmp_path / "data" / ".index").rglob("*.arrow"))
    assert index_folder(tmp_path, tmp_path / "a" / "vcr") != index_folder(tmp_path, tmp_path / "b" / "vcr")


@settings(max_examples=40)
@given(parts=st.lists(st.sampled_from(["a", "b.jpg", "..", "", ".", "c@3.jpg", "é"]), min_size=1, max_size=5))
def test_safe_names_stay_inside(parts: list[str]) -> None:
    name = "/".join(parts)
    if is_safe_name(name):
        root = Path("/data/vcr")
        assert (root / name).resolve().is_relative_to(root)
        assert not Path(name).is_absolute()


def test_unsafe_names() -> None:
    names = ["", "/a", "../a", "a/../b", "a/..", "C:/a", "a\\b", "a\0b", ".."]
    assert not [name for name in names if is_safe_name(name)]


def test_every_dataset_lists_splits_and_every_official_one_has_files() -> None:
    for name in dataset_names():
        card = load_card(name) if name in card_names() else None
        assert find_dataset(name).splits
        assert "train" in find_dataset(name).splits or (card and card.facts["evaluate_only"])
    for name in ("vcr", "vqa-v2", "vqa-cp-v2", "vqa-vs", "snli-ve"):
        for split, facts in load_card(name).splits.items():
            assert facts.get("annotations") or facts.get("questions"), f"{name} {split}"


def test_an_unbuilt_corpus_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        open_dataset("scenes-vqa", split="train", data_root=tmp_path)
    assert caught.value.next_command == "advl scenes build"


def test_a_path_with_spaces_and_other_letters(tmp_path: Path) -> None:
    root = tmp_path / "my däta 数据"
    write_vcr(root, [vcr_record(number) for number in range(2)])
    dataset = open_dataset("vcr", split="val", data_root=root)
    assert dataset[0].image.path.is_file()
    assert len(dataset.image_units()) == 1


def test_captions_with_phrases_and_boxes(tmp_path: Path) -> None:
    write_captions(tmp_path)
    dataset = open_dataset("scenes-captions", split="train", data_root=tmp_path)
    assert (len(dataset), len(dataset.image_units()), len(dataset.text_units())) == (6, 3, 1)
    example = dataset[1]
    named = [(example.candidates[0].text[tag.start : tag.end], tag.box) for tag in example.candidates[0].tags]
    assert named == [("cat", 0), ("red dog", 1)]
    assert example.image.boxes_R4.tolist() == [[1, 2, 11, 12], [20, 3, 30, 13]]
    assert example.label is None
    np.testing.assert_array_equal(dataset.question_table().cells, np.zeros(6))


def test_the_boxes_of_a_picture_must_be_there(tmp_path: Path) -> None:
    write_snli_ve(tmp_path / "scenes", name="test", count=4)
    boxes = tmp_path / "scenes" / "snli-ve" / "boxes_test.jsonl"
    lines = [
        {"image": f"flickr30k_images/100000000{picture}.jpg", "width": 64, "height": 48, "boxes": [[0, 0, 5, 5]]}
        for picture in (1, 2)
    ]
    write_lines(boxes, lines)
    dataset = open_dataset("scenes-snli-ve", split="test", data_root=tmp_path)
    assert [len(unit.boxes_R4) for unit in dataset.image_units()] == [1, 1]
    write_lines(boxes, lines[:1])
    with pytest.raises(DatasetError) as caught:
        open_dataset("scenes-snli-ve", split="test", data_root=tmp_path).image_units()
    assert "no line in the file of boxes" in caught.value.why
    write_lines(boxes, [*lines, lines[0]])
    with pytest.raises(DatasetError) as caught:
        open_dataset("scenes-snli-ve", split="test", data_root=tmp_path)
    assert caught.value.where == f"{boxes}:3"
    boxes.write_text(json.dumps(lines[0] | {"image": "/etc/x.jpg"}))
    with pytest.raises(DatasetError, match="malformed"):
        open_dataset("scenes-snli-ve", split="test", data_root=tmp_path)
