"""Own rows that cannot be read, and rows that are conversations, in their published forms."""

from __future__ import annotations

import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from commands import advl
from own_rows import (
    choice_row,
    class_row,
    data_of,
    labels_of,
    refusal,
    rows_of,
    train_of,
    write_json_lines,
    write_pictures,
)
from PIL import Image

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.packages import install_extra
from advl_pipeline.datasets.own.kept_rows import keep_rows
from advl_pipeline.datasets.registry import find_dataset, open_dataset


def test_what_is_wrong_in_a_file_concerns_its_split_alone(tmp_path: Path) -> None:
    for name, row in (("train", choice_row(0, id="x")), ("test", choice_row(1, id="x")), ("a+b", choice_row(1))):
        write_json_lines(tmp_path / f"{name}.jsonl", [{key: row[key] for key in row if key != "split"}])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"image": \n')
    assert len(open_dataset(str(tmp_path), split="test")) == 1
    assert refusal(tmp_path).where == f"{tmp_path / 'train.jsonl'}:2"
    error = refusal(tmp_path, "a+b")
    assert error.where == f"{tmp_path / 'a+b.jsonl'}:1"
    assert "the file is given as the split 'a+b', expected letters, digits" in error.why
    card = tmp_path / "card.toml"
    card.write_text('files = { val = ["test.jsonl", "train.jsonl"] }')
    error = refusal(card, "val")
    assert error.where == f"{tmp_path / 'train.jsonl'}:1"
    assert f"which {tmp_path / 'test.jsonl'}:1 has already" in error.why


GOOD = json.dumps(class_row(0)).encode()
UNREADABLE = [
    ("data.xlsx", b"x", "", "ends in '.xlsx'; known: .jsonl"),
    ("data.parquet", b"PAR1", "", "not readable Parquet"),
    ("data.jsonl", b"\n", "", "has no rows"),
    ("data.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n\n" + GOOD[:-3] + b"\n", ":3", "the line is cut off"),
    ("data.csv", b'image,"text"x,label\nred.png,x,1\n', ":1", "The header of the file cannot be read."),
    ("data.csv", b"image,image,text,label\n", ":1", "given twice: image"),
    ("data.csv", b"image,text,label\npictures/red.png,y\n", ":2", "the line has 2 cells, the header has 3"),
    ("data.csv", b"image,text,label\npictures/red.png,\xff,1\n", ":2", "the line is not UTF-8"),
    ("data.csv", b'image,text,choices\npictures/red.png,x,"[1,"\n', ":2", "begins like JSON but is not"),
]


@pytest.mark.parametrize(("name", "content", "line", "why"), UNREADABLE)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, line: str, why: str) -> None:
    write_pictures(tmp_path / "pictures")
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert (error.exit_code, error.where) == (5, f"{tmp_path / name}{line}")
    assert why in f"{error.what} {error.why}"


def test_what_is_not_there(tmp_path: Path) -> None:
    data = write_json_lines(tmp_path / "colours.jsonl", rows_of(choice_row))
    error = refusal(tmp_path / "colors.jsonl")
    assert (error.exit_code, "did you mean colours.jsonl?" in error.why) == (5, True)
    (tmp_path / "empty").mkdir()
    assert "no file in it ends in" in refusal(tmp_path / "empty").why
    assert "no split 'val'" in refusal(data, split="val").what
    assert "no task 'vqa'" in refusal(data, tasks=["vqa"]).what
    assert "no dataset 'vcrr'" in refusal("vcrr").what


def test_a_bad_quote_costs_the_rows_that_it_takes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    data = tmp_path / "data.csv"
    rows = ["red.png,first,yes", 'red.png,"a"b,no', 'blue.png,"two\nlines",no', 'red.png,"a,no', "red.png,last,yes"]
    data.write_text("\n".join(["image,text,label", *rows]))
    rest = open_dataset(str(data), split="train", on_error="skip")
    assert [rest[place].candidates[0].text for place in range(2)] == ["first", "two lines"]
    problems = [(problem.line, problem.why.partition(":")[0]) for problem in rest.skipped]
    assert problems == [(3, "not CSV, nor are lines 3 to 3"), (6, "not CSV, nor are lines 6 to 7")]


AMBIGUOUS = choice_row(0, answers="red")


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ("", "beside them stand label and answers"),
        ('task = "classes"\n', "column 'text' is missing, the card says that the task is classes"),
        ('task = "choice"\n[columns]\nimage = "picture"\n', "column 'picture', which the card gives as 'image'"),
    ],
)
def test_columns_that_fit_several_kinds_or_not_the_card(tmp_path: Path, card: str, why: str) -> None:
    assert why in refusal(data_of(tmp_path, [AMBIGUOUS], card)).why
    assert find_dataset(data_of(tmp_path, [AMBIGUOUS], 'task = "choice"\n')).tasks == ("choice",)


OF_A_FILE, OF_THE_HUB = "files = 'a.jsonl'\n", "files = 'hf:a/b'\n"
JOINED = OF_THE_HUB + "join = {{key = 'a', on = 'a', columns = [], files = {}}}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("task = 5", "cannot be 5"),
        ("files = [", "not valid TOML"),
        ("files = {}", "does not say which files"),
        ("files = '../a.jsonl'", "a file outside its folder"),
        (f"{OF_A_FILE}tasks = 'choice'", "Unknown key 'tasks'"),
        (f"{OF_A_FILE}format = 'vcr'", "Unknown key 'format'"),
        (f"{OF_A_FILE}labels = ['a', 'a']", "named twice"),
        (f"{OF_A_FILE}min_answer_count = 0", "must be at least 1"),
        (f"{OF_A_FILE}num_rows = 3", "is for datasets of the hub"),
        (f"{OF_A_FILE}[columns]\nimages = 'x'", "Unknown column 'images'"),
        (f"{OF_THE_HUB}[[items]]\npicture = 'a'", "Unknown column 'picture'"),
        (f"{OF_THE_HUB}[join]\nkey = 'a'", "missing"),
        (JOINED.format("['hf:c/d', 'hf:e/f']"), "expected hf:NAME, or a table split -> hf:NAME$"),
    ],
)
def test_cards_that_cannot_be_used(tmp_path: Path, text: str, why: str) -> None:
    card = tmp_path / "card.toml"
    card.write_text(text)
    with pytest.raises(ConfigError, match=why) as caught:
        open_dataset(str(card), split="train")
    assert str(card) in caught.value.where


def test_a_value_of_a_row_that_cannot_be_kept_names_its_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVL_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="cannot be kept") as caught:
        keep_rows([class_row(0), class_row(1, note={1, 2})], pictures=tmp_path)
    assert caught.value.where == "data, row 2, column 'note'"


def test_a_label_of_another_split_that_train_lacks(tmp_path: Path) -> None:
    rows = rows_of(class_row)
    rows[17] = class_row(17, label="perhaps")
    data = data_of(tmp_path, rows)
    error = refusal(data, "test")
    assert error.where == f"{data}:18"
    assert "field 'label' is 'perhaps', expected one of no, yes" in error.why


def test_the_hub_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called `datasets` beside the user is no library either."""
    for module in (None, types.ModuleType("datasets")):
        monkeypatch.setitem(sys.modules, "datasets", module)
        error = refusal("hf:somebody/pets")
        assert (error.exit_code, error.why) == (5, "it is not installed")
        assert error.next_command == install_extra("hub")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"hypothesis": "It is red.", "gold_label": "yes"}, "It is red."),
        ({"caption": "x", "question": "Red?", "options": ["yes", "no"], "correct_choice_idx": 0}, "Red? yes"),
        ({"question": "Red?", "direct_answers": ["yes"]}, "Red?"),
        # ChartQA's, and A-OKVQA's, whose rationales are all right.
        ({"query": "Red?", "label": ["yes"], "human_or_machine": 0}, "Red?"),
        (
            {"image": "pictures/red.png", "question": "Red?", "choices": ["yes", "no"], "correct_choice_idx": 0}
            | {"direct_answers": "['yes']", "rationales": ["It is.", "One sees it."]},
            "Red? yes",
        ),
    ],
)
def test_the_hint_of_columns_writes_a_card_that_works(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    """Names of public datasets whose meaning is not certain are named, all at once, for one kind of task."""
    rows = [({} if "image" in row else {"file_name": "pictures/red.png"}) | row]
    match = re.search(r"\[columns\] (.*)", refusal(data_of(tmp_path, rows)).why)
    assert match is not None
    train = train_of(tmp_path, rows, "[columns]\n" + match[1].replace(" and ", "\n") + "\n")
    assert (train[0].candidates[0].text, labels_of(train)) == (text, [0])


# Conversations: `messages` and `images`, as TRL, ms-swift, LLaMA-Factory and LLaVA publish them.

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
