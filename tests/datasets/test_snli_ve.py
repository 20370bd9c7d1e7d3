"""SNLI-VE reads in all spellings that circulate, and never the premise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import snli_ve_record, write_snli_ve

from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import DatasetError


def test_pairs_labels_and_pictures(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    dataset = open_dataset("snli-ve", split="test", data_root=tmp_path)
    assert len(dataset) == 12
    assert dataset.example_ids[1] == "1000000001.jpg#1r1n"
    assert dataset.label_names("snli-ve") == ("contradiction", "entailment", "neutral")
    assert [dataset[index].label for index in range(3)] == [1, 2, 0]
    assert dataset[1].candidates[0].text == "Two friends wait for bus 1."
    assert all("premise" not in unit.text for unit in dataset.text_units())
    # Numbers 0 and 1 spell the field differently and 2 names the picture in pairID alone: three pairs of pictures.
    assert [dataset[index].image.path.name for index in range(4)] == [
        "1000000001.jpg",
        "1000000001.jpg",
        "1000000002.jpg",
        "1000000002.jpg",
    ]


def test_label_order_by_student(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    dataset = open_dataset("snli-ve", split="test", data_root=tmp_path, label_order="meter")
    assert dataset.label_names("snli-ve") == ("contradiction", "neutral", "entailment")
    assert [dataset[index].label for index in range(3)] == [2, 1, 0]
    other = open_dataset("snli-ve", split="test", data_root=tmp_path)
    assert dataset.content_digest() == other.content_digest()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"gold_label": "-"}, "gold_label is '-'"),
        ({"sentence2": ""}, "'sentence2'"),
        ({"pairID": None}, "'pairID'"),
        ({"pairID": "1000000001.jpg#0r0n"}, "which {file}:1 has already"),
        ({"Flickr30K_ID": "../1000000001"}, "leaves the dataset's folder"),
        ({"Flickr30K_ID": "/etc/passwd"}, "leaves the dataset's folder"),
        ({"Flickr30K_ID": "a\\b"}, "leaves the dataset's folder"),
        ({"Flickr30K_ID": None, "Flikr30kID": None, "pairID": "no picture"}, "names no picture"),
    ],
)
def test_bad_lines_are_named_or_skipped(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    file = write_snli_ve(tmp_path)
    lines = file.read_text().splitlines()
    lines[4] = json.dumps(snli_ve_record(4) | fields)
    file.write_text("\n".join(lines))
    with pytest.raises(DatasetError) as caught:
        open_dataset("snli-ve", split="test", data_root=tmp_path)
    assert caught.value.where == f"{file}:5"
    assert why.format(file=file) in caught.value.why
    skipping = open_dataset("snli-ve", split="test", data_root=tmp_path, on_error="skip")
    assert len(skipping) == 11
    assert [problem.line for problem in skipping.skipped] == [5]
