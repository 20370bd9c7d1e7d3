"""DAQUAR and captions of Flickr8k: files of ours in the forms in which they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.roots import DatasetMissing


def pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (32, 24), (7 * number, 90, 30)).save(folder / name)


def opened(name: str, root: Path, *splits: str) -> dict[str, IndexedDataset]:
    return {split: open_dataset(name, split=split, data_root=root) for split in splits}


def shown(dataset: IndexedDataset) -> set[str]:
    return {dataset[place].image.path.name for place in range(len(dataset))}


def write_daquar(folder: Path, form: str) -> None:
    pictures(
        folder / ("nyu_depth_images" if form == "qa" else "images"), [f"image{place}.png" for place in range(30)]
    )
    asked = [
        (f"what is on the table in the image{place} ?", ("cup, lamp", "lamp, cup")[place % 2]) for place in range(30)
    ]
    lines = {"train": asked[:20], "test": asked[20:]}
    if form == "qa":
        for split, pairs in lines.items():
            text = "\n".join(line for pair in pairs for line in pair)
            (folder / f"qa.894.raw.{split}.txt").write_text(text + "\n", encoding="utf-8")
        return
    for split, places in (("train", range(20)), ("test", range(20, 30))):
        listed = "\n".join(f"image{place}" for place in places)
        (folder / f"{split}_images_list.txt").write_text(listed, encoding="utf-8")
    if form == "csv":
        rows = [f'what is on the table,"{answer}",image{place}' for place, (_, answer) in enumerate(asked)]
        (folder / "data.csv").write_text("\n".join(["question,answer,image_id", *rows]) + "\n", encoding="utf-8")
    else:
        text = "\n".join(line for pair in asked for line in pair)
        (folder / "all_qa_pairs.txt").write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize("form", ["qa", "pairs", "csv"])
def test_each_form_of_daquar_gives_its_split_by_picture_and_answers_as_sets(form: str, tmp_path: Path) -> None:
    write_daquar(tmp_path / "daquar", form)
    splits = opened("daquar", tmp_path, "train", "val", "test")
    assert [len(dataset) for dataset in splits.values()] == [18, 2, 10]
    train, val, test = (shown(dataset) for dataset in splits.values())
    assert not train & val
    assert test == {f"image{place}.png" for place in range(20, 30)}
    assert splits["train"].label_names("answers") == ("cup, lamp",)
    assert splits["test"][0].soft_label == ((0, 1.0),)
    assert "image2" not in splits["test"][0].candidates[0].text


@pytest.mark.parametrize("form", ["captions.txt", "Flickr8k.token.txt"])
def test_each_form_of_captions_gives_four_choices_of_one_split(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "flickr-captions"
    names = [f"{place}.jpg" for place in range(25)]
    pictures(folder / "images", names)
    things = ("dog", "boat", "child", "horse", "car")
    said = [
        (name, f"A {things[place % 5]} , number {place} , {word} .")
        for place, name in enumerate(names)
        for word in ("runs", "waits")
    ]
    if form == "captions.txt":
        lines = ["image,caption", *(f'{name},"{caption}"' for name, caption in said)]
    else:
        lines = [f"{name}#{place % 2}\t{caption}" for place, (name, caption) in enumerate(said)]
    (folder / form).write_text("\n".join(lines) + "\n", encoding="utf-8")
    splits = opened("flickr-captions", tmp_path, "train", "val", "test", "test-near")
    assert [len(dataset) for dataset in splits.values()] == [30, 10, 10, 10]
    assert shown(splits["test"]) == shown(splits["test-near"])
    assert not shown(splits["train"]) & (shown(splits["val"]) | shown(splits["test"]))
    picture_of = {caption: name for name, caption in said}
    for dataset in splits.values():
        for place in range(len(dataset)):
            example = dataset[place]
            captions = [candidate.answer for candidate in example.candidates]
            assert len({picture_of[caption] for caption in captions}) == 4
            assert picture_of[captions[example.label or 0]] == example.image.path.name
            assert {picture_of[caption] for caption in captions} <= shown(dataset)


def test_what_is_missing_or_malformed_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing) as absent:
        open_dataset("daquar", split="train", data_root=tmp_path)
    assert "advl datasets card daquar" in str(absent.value)
    folder = tmp_path / "daquar"
    write_daquar(folder, "pairs")
    (folder / "test_images_list.txt").rename(folder / "other.txt")
    with pytest.raises(DatasetMissing, match=r"qa\.894\.raw"):
        open_dataset("daquar", split="train", data_root=tmp_path)
    (folder / "other.txt").rename(folder / "test_images_list.txt")
    with (folder / "all_qa_pairs.txt").open("a", encoding="utf-8") as file:
        file.write("\nwhat is it ?\ncup\n")
    with pytest.raises(DatasetError, match="names its picture") as malformed:
        open_dataset("daquar", split="train", data_root=tmp_path)
    # Thirty questions with their answers, then a blank line.
    assert malformed.value.where == f"{folder / 'all_qa_pairs.txt'}:62"
