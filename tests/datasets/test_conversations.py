"""Rows of `messages` and `images`, in the forms in which TRL, ms-swift, LLaMA-Factory and LLaVA publish them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from commands import advl
from own_rows import write_json_lines, write_pictures
from PIL import Image

from advl_pipeline.datasets.registry import open_dataset

RED, BLUE = "pictures/red.png", "pictures/blue.png"

FORMS: dict[str, dict[str, Any]] = {
    # Of TRL: parts of content, pictures in a column of their own.
    "trl": {
        "images": [RED],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        ],
    },
    # Of ms-swift and LLaMA-Factory: a sign in the text.
    "swift": {
        "messages": [
            {"role": "user", "content": "<image>What colour is it?"},
            {"role": "assistant", "content": "red"},
        ],
        "images": [RED],
    },
    # ShareGPT's words, as LLaVA's training files have them.
    "llava": {
        "id": "000000033471",
        "image": RED,
        "conversations": [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": "red"},
        ],
    },
    # train_set.jsonl of NaturalBench's split for finetuning: the picture is a message of its own.
    "naturalbench": {
        "messages": [
            {"role": "user", "content": "What colour is it?"},
            {"role": "user", "content": [{"type": "image", "image_path": RED}]},
            {"role": "assistant", "content": "red"},
        ]
    },
}


def data(folder: Path, *rows: dict[str, Any]) -> str:
    write_pictures(folder / "pictures")
    return str(write_json_lines(folder / "train.jsonl", rows))


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_is_one_question(tmp_path: Path, form: str) -> None:
    train = open_dataset(data(tmp_path, FORMS[form]), split="train")
    (example,) = (train[place] for place in range(len(train)))
    assert example.task == "answers"
    assert example.candidates[0].text == "What colour is it?"
    assert train.label_names("answers") == ("red",)
    assert example.image.path.samefile(tmp_path / RED)
    assert dict(example.soft_label) == {0: 1.0}


def test_parquet_with_pictures_inside(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(picture, "PNG")
    part = {"type": "text", "text": "What colour is it?"}
    rows = [
        {
            "images": [{"bytes": picture.getvalue(), "path": None}],
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, part]},
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
            ],
        }
    ]
    texts = datasets.Value("string")
    turn = {"role": texts, "content": datasets.List({"type": texts, "text": texts})}
    features = datasets.Features({"images": datasets.List(datasets.Image()), "messages": datasets.List(turn)})
    folder = tmp_path / "org" / "chats"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    train = open_dataset("hf:org/chats", split="train", data_root=tmp_path)
    assert train[0].candidates[0].text == "What colour is it?"
    assert train[0].image.path.read_bytes() == picture.getvalue()


def test_each_question_of_a_conversation_is_an_item_of_one_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [
        {"role": "system", "content": "Answer in a word."},
        {"role": "user", "content": "<image>What colour is it?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Is it dark?"},
        {"role": "assistant", "content": "no"},
    ]
    path = data(tmp_path, {"id": "a", "images": [RED], "messages": turns}, {"images": [BLUE], "messages": turns})
    train = open_dataset(path, split="train")
    assert train.example_ids == ("a-1", "a-2", "train-2-1", "train-2-2")
    texts = [train[place].candidates[0].text for place in range(4)]
    assert texts[:2] == ["Answer in a word. What colour is it?", "Is it dark?"]
    assert train[0].cluster == train[1].cluster != train[2].cluster
    code, out, _ = advl(capsys, "datasets", "check", path, "--deep")
    assert (code, "malformed" in out) == (0, False)


def test_options_in_a_conversation_are_choices_where_a_card_says_so(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "<image>Which?\nA. red\nB. blue"},
        {"role": "assistant", "content": "B"},
    ]
    data(tmp_path, {"images": [BLUE], "messages": turns})
    card = tmp_path / "mine.toml"
    card.write_text(
        'files = "train.jsonl"\ntask = "choice"\noptions_in_question = true\nlabel_is = "letter"\n'
        '[columns]\nlabel = "answer"\n'
    )
    example = open_dataset(str(card), split="train")[0]
    assert [each.text for each in example.candidates] == ["Which? red", "Which? blue"]
    assert example.label == 1
