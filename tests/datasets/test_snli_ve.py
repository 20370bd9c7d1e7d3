"""SNLI-VE reads in all spellings that circulate, and never the premise."""

from __future__ import annotations

from pathlib import Path

from dataset_mirrors import write_snli_ve

from advl_pipeline.datasets.registry import open_dataset


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
