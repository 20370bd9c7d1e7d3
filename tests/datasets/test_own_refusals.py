"""Data of one's own that cannot be read: what is named as wrong, where, and what a card could say about it."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
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

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.packages import install_extra
from advl_pipeline.datasets.own.kept_rows import keep_rows
from advl_pipeline.datasets.registry import find_dataset, open_dataset


def test_a_broken_line_concerns_the_split_of_its_file_alone(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "train.jsonl", [choice_row(0, split=...)])
    write_json_lines(tmp_path / "test.jsonl", [choice_row(1, split=...)])
    write_json_lines(tmp_path / "a+b.jsonl", [choice_row(1, split=...)])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"image": \n')
    assert len(open_dataset(str(tmp_path), split="test")) == 1
    assert refusal(tmp_path).where == f"{tmp_path / 'train.jsonl'}:2"
    error = refusal(tmp_path, "a+b")
    assert error.where == f"{tmp_path / 'a+b.jsonl'}:1"
    assert "the file is given as the split 'a+b', expected letters, digits" in error.why


def test_the_same_id_twice(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "a.jsonl", [choice_row(0, id="x", split=...)])
    write_json_lines(tmp_path / "b.jsonl", [choice_row(1, id="x", split=...)])
    card = tmp_path / "card.toml"
    card.write_text('files = { train = ["a.jsonl", "b.jsonl"] }')
    error = refusal(card)
    assert error.where == f"{tmp_path / 'b.jsonl'}:1"
    assert f"which {tmp_path / 'a.jsonl'}:1 has already" in error.why
    card.write_text('files = { train = "a.jsonl", val = "b.jsonl" }')
    assert len(open_dataset(str(card), split="val")) == 1


def test_columns_that_fit_nothing_several_or_not_the_card(tmp_path: Path) -> None:
    rows = [choice_row(0, answers="red")]
    why = refusal(data_of(tmp_path, rows)).why
    assert "ambiguous: they fit choice (image, question, choices, label) and answers" in why
    assert "task = 'choice'" in why
    assert find_dataset(data_of(tmp_path, rows, 'task = "choice"\n')).tasks == ("choice",)
    why = refusal(data_of(tmp_path, rows, 'task = "classes"\n')).why
    assert "column 'text' is missing, the card says that the task is classes" in why
    why = refusal(data_of(tmp_path, rows, 'task = "choice"\n[columns]\nimage = "picture"\n')).why
    assert "column 'picture', which the card gives as 'image', is missing" in why


def test_cards_that_cannot_be_used(tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    for text, why in (
        ("task = 5", "cannot be 5"),
        ("tasks = 'choice'\nfiles = 'a.jsonl'", "Unknown key 'tasks'"),
        ("files = 'a.jsonl'\nname = 'mine'", "Unknown key 'name'"),
        ("files = 'a.jsonl'\nformat = 'vcr'", "Unknown key 'format'"),
        ("files = 'a.jsonl'\n[columns]\nimages = 'x'", "Unknown column 'images'"),
        ("files = 'a.jsonl'\nlabels = ['a', 'a']", "named twice"),
        ("files = {}", "does not say which files"),
        ("task = 'choice'", "does not say which files"),
        ("files = '../a.jsonl'", "a file outside its folder"),
        ("files = [", "not valid TOML"),
        ("files = 'a.jsonl'\nmin_answer_count = 0", "must be at least 1"),
        ("files = 'a.jsonl'\nnum_rows = 3", "what is done for datasets of the hub alone"),
        ("files = 'a.jsonl'\n[split_names]\na = 'b'", "what is done for datasets of the hub alone"),
        ("files = 'hf:a/b'\nneeds = ['picture']", "Unknown column 'picture'"),
        ("files = 'hf:a/b'\n[[items]]\npicture = 'a'", "Unknown column 'picture'"),
        ("files = 'hf:a/b'\n[join]\nkey = 'a'", "missing"),
        ("files = 'hf:a/b'\njoin = {files = 5, key = 'a', on = 'a', columns = []}", "does not say which files"),
        (
            "files = 'hf:a/b'\njoin = {files = ['hf:c/d', 'hf:e/f'], key = 'a', on = 'a', columns = []}",
            "expected hf:NAME, or a table split -> hf:NAME$",
        ),
    ):
        card.write_text(text)
        with pytest.raises(ConfigError, match=why) as caught:
            open_dataset(str(card), split="train")
        assert caught.value.exit_code == 2
        assert str(card) in caught.value.where


def test_what_is_not_there_or_of_no_known_format(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "colours.jsonl", rows_of(choice_row))
    error = refusal(tmp_path / "colors.jsonl")
    assert (error.exit_code, "did you mean colours.jsonl?" in error.why) == (5, True)
    (tmp_path / "data.xlsx").write_bytes(b"x")
    assert "ends in '.xlsx'; known: .jsonl" in refusal(tmp_path / "data.xlsx").why
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "hold no row" in refusal(tmp_path / "empty.jsonl").what
    (tmp_path / "empty").mkdir()
    assert "no file in it ends in" in refusal(tmp_path / "empty").why
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "not readable Parquet" in refusal(tmp_path / "bad.parquet").what
    assert "no split 'val'" in refusal(tmp_path / "colours.jsonl", split="val").what
    assert "no task 'vqa'" in refusal(tmp_path / "colours.jsonl", tasks=["vqa"]).what
    with pytest.raises(ConfigError, match="no dataset 'vcrr'"):
        open_dataset("vcrr", split="train")


def test_lines_that_cannot_be_parsed(tmp_path: Path) -> None:
    good = json.dumps(class_row(0)).encode()
    write_pictures(tmp_path / "pictures")
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + good[:-3] + b"\n")
    assert refusal(data).where == f"{data}:3"
    table = tmp_path / "data.csv"
    table.write_bytes(b"image,text,label\npictures/red.png,x,1\npictures/red.png,y\npictures/red.png,\xff,1\n")
    problems = open_dataset(str(table), split="train", on_error="list").skipped
    assert [(item.line, item.why) for item in problems] == [
        (3, "the line has 2 cells, the header has 3"),
        (4, "the line is not UTF-8"),
    ]
    table.write_text('image,"text"x,label\nred.png,x,1\n')
    error = refusal(table, on_error="skip")
    assert (error.what, error.where) == ("The header of the file cannot be read.", f"{table}:1")
    table.write_text("image,image,text,label\n")
    assert "Two columns" in refusal(table).what
    table.write_text('image,text,choices\npictures/red.png,x,"[1,"\n')
    assert "field 'choices' begins like JSON and is none" in refusal(table).why


def test_a_bad_quote_costs_the_rows_that_it_takes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    data = tmp_path / "data.csv"
    rows = ["red.png,first,yes", 'red.png,"a"b,no', 'blue.png,"two\nlines",no', 'red.png,"a,no', "red.png,last,yes"]
    data.write_text("\n".join(["image,text,label", *rows]))
    assert refusal(data).where == f"{data}:3"
    rest = open_dataset(str(data), split="train", on_error="skip")
    assert [rest[place].candidates[0].text for place in range(2)] == ["first", "two lines"]
    problems = [(problem.line, problem.why.partition(":")[0]) for problem in rest.skipped]
    assert problems == [(3, "not CSV, nor are lines 3 to 3"), (6, "not CSV, nor are lines 6 to 7")]


def test_a_class_that_is_a_number_is_read_as_the_card_says(tmp_path: Path) -> None:
    """Grades from 1: the label 1 is the class "1", or the first but one; the label 3 fits one way alone."""
    rows = [class_row(number, label=label) for number, label in enumerate([1, "3"])]
    grades = 'labels = ["1", "2", "3"]\n'
    for form, label in (("index", 1), ("text", 0)):
        assert labels_of(train_of(tmp_path, rows, f'{grades}label_is = "{form}"\n')) == [label, 2]
    # Both ways lead to one class.
    assert labels_of(train_of(tmp_path, rows, 'labels = ["0", "1", "2", "3"]\n')) == [1, 3]


def test_a_class_goes_by_a_letter_only_where_the_card_says_so(tmp_path: Path) -> None:
    rows, names = [class_row(number, label=label) for number, label in enumerate("AB")], 'labels = ["no", "yes"]\n'
    assert refusal(data_of(tmp_path, rows, names)).where.endswith(":1")
    assert labels_of(train_of(tmp_path, rows, f'{names}label_is = "letter"\n')) == [0, 1]


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
    ],
)
def test_the_hint_of_columns_writes_a_card_that_works(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    """Names of public datasets whose meaning is not certain are named, all at once, for one kind of task."""
    rows = [row | {"file_name": "pictures/red.png"}]
    match = re.search(r"a card renames columns: \[columns\] (.*)", refusal(data_of(tmp_path, rows)).why)
    assert match is not None
    example = train_of(tmp_path, rows, "[columns]\n" + match[1].replace(" and ", "\n") + "\n")[0]
    assert (example.candidates[0].text, example.label) == (text, 0)


def test_an_answer_beside_choices_is_named_as_their_label(tmp_path: Path) -> None:
    rows = [choice_row(0, split="train", label=..., answer="red")]
    advice = 'where the answer is the right one of the choices: [columns] label = "answer"'
    assert advice in refusal(data_of(tmp_path, rows)).why
    assert labels_of(train_of(tmp_path, rows, '[columns]\nlabel = "answer"\n')) == [0]
