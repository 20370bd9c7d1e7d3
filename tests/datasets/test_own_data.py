"""Own data: what is read as what, in every format; what is named as wrong, and how."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import exit_code
from hypothesis import given, settings
from hypothesis import strategies as st
from own_rows import (
    COLOURS,
    answer_row,
    choice_row,
    class_row,
    data_of,
    labels_of,
    refusal,
    rows_of,
    train_of,
    write_csv,
    write_json_lines,
    write_parquet,
    write_pictures,
)

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.own import data as data_of_rows
from advl_pipeline.datasets.own.data import rows_dataset
from advl_pipeline.datasets.pictures import read_picture
from advl_pipeline.datasets.records import compose, parse_tagged
from advl_pipeline.datasets.registry import find_dataset, open_dataset, open_splits
from advl_pipeline.datasets.roots import dataset_label, is_location, set_name

Maker = Callable[..., dict[str, Any]]


def test_classes_are_those_of_train_and_keep_their_order_in_every_split(tmp_path: Path) -> None:
    data = str(write_json_lines(tmp_path / "true.jsonl", rows_of(class_row)))
    assert [open_dataset(data, split=split).label_names("classes") for split in ("train", "test")] == [
        ("no", "yes")
    ] * 2
    numbers = str(write_json_lines(tmp_path / "numbers.jsonl", [class_row(n, label=n % 11) for n in range(20)]))
    assert open_dataset(numbers, split="test").label_names("classes") == tuple(map(str, range(11)))
    write_pictures(tmp_path / "elsewhere" / "pictures")
    dataset = open_dataset(data, split="train", data_root=tmp_path / "elsewhere")
    assert dataset[0].image.path == tmp_path / "elsewhere" / "pictures" / "red.png"


def test_pictures_elsewhere_are_read_through_a_link_next_to_the_rows(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "pictures").symlink_to(tmp_path / "photos")
    data = str(write_json_lines(tmp_path / "rows" / "true.jsonl", rows_of(class_row)))
    example = open_dataset(data, split="train")[0]
    assert read_picture(example.image).size == (64, 48)


def test_rows_of_many_chunks_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json_lines(tmp_path / "true.jsonl", rows_of(class_row))
    opened = []
    for chunk in (1 << 14, 3):
        monkeypatch.setattr("advl_pipeline.datasets.index_builder._CHUNK", chunk)
        monkeypatch.setenv("ADVL_INDEX", str(tmp_path / f"chunks-{chunk}"))
        data = open_dataset(str(tmp_path / "true.jsonl"), split="train")
        opened.append((data.content_digest(), data.label_names("classes"), str([data[n] for n in range(len(data))])))
    assert opened[0] == opened[1]


COMPOSED, APART = "gr\u00fcn", "gru\u0308n"
GRADES = 'labels = ["1", "2", "3"]\n'


@pytest.mark.parametrize(
    ("choices", "written", "card", "read"),
    [
        (["red", "green", "blue"], ["C", "(C)", "C.", "C:", "(C)."], "", [2] * 5),
        # A letter that is also the text of another choice could be either.
        (["B", "A"], ["A"], "", None),
        (["B", "A"], ["A"], 'label_is = "text"\n', [1]),
        (["B", "A"], ["A"], 'label_is = "letter"\n', [0]),
        (["1", "0"], ["0"], 'label_is = "index"\n', [0]),
        (["1", "0"], ["0"], 'label_is = "text"\n', [1]),
        # Choices that read alike are ambiguous only where the label is their text (`test_bad_rows.py`).
        (["1", "1"], ["1"], 'label_is = "index"\n', [1]),
        ([COMPOSED, "rot"], [APART], "", [0]),
        (None, ["ja", "ja ", " nein", "nein", COMPOSED, APART], "", [1, 1, 2, 2, 0, 0]),
        (None, ["ja", APART], f'labels = ["{APART}", "ja"]\n', [1, 0]),
        # A class goes by a letter only where the card says so.
        (None, ["A", "B"], 'labels = ["no", "yes"]\nlabel_is = "letter"\n', [0, 1]),
        (None, ["A", "B"], 'labels = ["no", "yes"]\n', None),
        # Grades from 1: the label 1 is the class "1", or the first but one; the label 3 fits one way alone.
        (None, [1, "3"], f'{GRADES}label_is = "index"\n', [1, 2]),
        (None, [1, "3"], f'{GRADES}label_is = "text"\n', [0, 2]),
        # Both ways lead to one class.
        (None, [1, "3"], 'labels = ["0", "1", "2", "3"]\n', [1, 3]),
    ],
)
def test_labels_as_they_are_written_and_read(
    tmp_path: Path, choices: list[str] | None, written: list[Any], card: str, read: list[int] | None
) -> None:
    """By text, position or letter; as texts are read, whatever their spaces and accents."""
    make = class_row if choices is None else partial(choice_row, choices=choices)
    rows = [make(number, label=label, split=...) for number, label in enumerate(written)]
    if read is None:
        assert refusal(data_of(tmp_path, rows, card)).where.endswith(":1")
    else:
        assert labels_of(train_of(tmp_path, rows, card)) == read


@pytest.mark.parametrize(
    ("make", "label", "names"),
    [(class_row, "label", ("bird", "cat", "dog")), (answer_row, "answers", ("cat", "bird", "dog"))],
)
def test_folds_that_are_joined_share_their_classes(
    tmp_path: Path, make: Maker, label: str, names: tuple[str, ...]
) -> None:
    """Each fold alone has two classes, and numbers them on its own."""
    pairs = [("fold1", "cat"), ("fold1", "dog"), ("fold2", "cat"), ("fold2", "bird")]
    rows = [make(number, split=split, **{label: name}) for number, (split, name) in enumerate(pairs)]
    data = str(write_json_lines(tmp_path / "folds.jsonl", rows))
    joined = open_splits(find_dataset(data), "fold1+fold2")
    task = joined.tasks[0]
    assert joined.label_names(task) == names
    assert [names[joined[place].label or 0] for place in range(4)] == [name for _, name in pairs]
    assert [part.label_names(task) for part in joined.parts] == [names, names]
    with pytest.raises(ConfigError, match="no split 'fold3'"):
        open_splits(find_dataset(data), "fold1+fold3")


def test_answers_are_worth_what_people_agree_on(tmp_path: Path) -> None:
    rows = [
        answer_row(0, answers="red"),
        answer_row(1, answers={"green": 2, "dark": 1}),
        answer_row(2, answers={COMPOSED: 1, APART: 3, "dark": 1}),
        answer_row(3, answers=[{"answer": "dark"}, {"answer": "dark"}]),
    ]
    train = train_of(tmp_path, rows)
    names = train.label_names("answers")
    assert names == ("dark", "green", COMPOSED, "red"), "the most frequent one of each question, each once"
    scores = [{names[label]: score for label, score in example.soft_label} for example in train]
    third = pytest.approx(1 / 3)
    assert scores == [
        {"red": 1},
        {"green": pytest.approx(2 / 3), "dark": third},
        {COMPOSED: 1, "dark": third},
        {"dark": 1},
    ]
    given = open_dataset(data_of(tmp_path, rows), split="train", answers=("dark", "blue"))
    assert (given.label_names("answers"), given[1].soft_label) == (("dark", "blue"), ((0, third),))


@pytest.mark.parametrize("make", [choice_row, class_row, answer_row])
def test_every_format_tells_the_same_data(tmp_path: Path, make: Maker) -> None:
    """One content has one digest, whatever the format, the order of columns, the file's name and its place."""
    rows = [row | {"boxes": [[1, 2, 30, 40]]} for row in rows_of(make)]
    if make is answer_row:
        rows = [row | {"answers": [row["answers"]] if isinstance(row["answers"], str) else ["x"]} for row in rows]
    if make is choice_row:
        rows = [row | {"label": row["choices"].index(row["image"][9:-4])} for row in rows]
    turned = [dict(reversed(row.items())) for row in rows]
    for name in "abcde":
        write_pictures(tmp_path / name / "pictures")
    held = [row | {"image": {"bytes": (tmp_path / "a" / row["image"]).read_bytes(), "path": None}} for row in rows]
    files = [
        write_json_lines(tmp_path / "a" / "one.jsonl", rows),
        write_json_lines(tmp_path / "b" / "two.ndjson", turned),
        write_csv(tmp_path / "c" / "three.csv", turned),
        write_parquet(tmp_path / "d" / "four.parquet", rows),
        write_parquet(tmp_path / "e" / "five.parquet", held),
    ]
    opened = [open_dataset(str(file), split="train") for file in files]
    assert len({dataset.content_digest() for dataset in opened}) == 1
    assert len({dataset.identity_name for dataset in opened}) == 1
    assert len({dataset.example_ids for dataset in opened}) == 1
    assert len({open_dataset(str(file), split="test").content_digest() for file in files}) == 1
    changed = write_json_lines(files[0], [rows[0] | {"group": "g"}, *rows[1:]])
    assert open_dataset(str(changed), split="train").content_digest() != opened[0].content_digest()
    assert (
        open_dataset(str(changed), split="test").content_digest()
        == open_dataset(str(files[1]), split="test").content_digest()
    )


def test_one_file_per_split_and_a_card(tmp_path: Path) -> None:
    rows = [choice_row(number, split=...) for number in range(20)]
    write_json_lines(tmp_path / "train.jsonl", rows[:12])
    write_json_lines(tmp_path / "val.jsonl", rows[12:])
    for data, label in ((tmp_path, tmp_path.name), (tmp_path / "card.toml", "card")):
        if data.suffix:
            data.write_text('files = { train = "train.jsonl", val = ["val.jsonl"] }\ntask = "choice"\n')
        assert find_dataset(str(data)).splits == ("train", "val")
        assert [len(open_dataset(str(data), split=split)) for split in ("train", "val")] == [12, 8]
        assert dataset_label(str(data)) == label
    assert find_dataset(str(tmp_path / "val.jsonl")).splits == ("val",)
    assert dataset_label(str(tmp_path / "val.jsonl")) == tmp_path.name
    (tmp_path / "two.toml").write_text('files = { train = ["train.jsonl", "val.jsonl"] }\n')
    both = open_dataset(str(tmp_path / "two.toml"), split="train")
    assert both.example_ids[11:13] == ("train-train:12", "train-val:1")


def test_a_card_renames_columns_and_orders_classes(tmp_path: Path) -> None:
    rows = [{"img": f"pictures/{colour}.png", "caption": "It is dark.", "gold": "no"} for colour in COLOURS]
    card = 'labels = ["yes", "no"]\n[columns]\nimage = "img"\ntext = "caption"\nlabel = "gold"\n'
    data = data_of(tmp_path, rows, card)
    dataset = open_dataset(data, split="train")
    assert (dataset.label_names("classes"), dataset[0].label) == (("yes", "no"), 1)
    assert rows_dataset(data, None).line == f"{data}: task classes, from the columns image, text, label; 5 train"
    line = rows_dataset(data_of(tmp_path, [class_row(0, groups="x", stratum="y")]), None).line
    assert line.endswith("image, text, label; also split, stratum; left alone: groups; 1 train")


def test_boxes_tags_rationales_groups_and_strata(tmp_path: Path) -> None:
    extra = {
        "question": "Why is [the dog|1] near [a cat|0]?",
        "choices": ["[It|1] is  glad.", "no reason"],
        "label": 0,
        "rationales": ["One sees [it|1].", "Nobody knows.", "x"],
        "rationale_label": 2,
        "boxes": [[1, 2, 30, 40], [5.5, 6, 20, 20]],
        "box_labels": ["cat", "dog"],
        "stratum": "why",
    }
    rows = [choice_row(number, **extra, group=f"film {number // 2}") for number in range(20)]
    dataset = open_dataset(str(write_json_lines(tmp_path / "rich.jsonl", rows)), split="train")
    assert (dataset.tasks, dataset.example_ids[:2]) == (
        ("choice", "rationale"),
        ("train-1:choice", "train-1:rationale"),
    )
    answer, rationale = dataset[0], dataset[1]
    first = answer.candidates[0]
    assert first.text == "Why is the dog near a cat? It is glad."
    assert [(first.text[tag.start : tag.end], tag.box) for tag in first.tags] == [
        ("the dog", 1),
        ("a cat", 0),
        ("It", 1),
    ]
    candidate = rationale.candidates[0]
    assert (candidate.text, rationale.label) == ("Why is the dog near a cat? It is glad. One sees it.", 2)
    assert candidate.answer == "One sees it."
    assert candidate.text[: candidate.question_length] == "Why is the dog near a cat?"
    assert answer.image.box_labels == ("cat", "dog")
    np.testing.assert_array_equal(answer.image.boxes_R4, np.float32([[1, 2, 30, 40], [5.5, 6, 20, 20]]))
    assert (answer.group, answer.cluster, answer.stratum) == ("film 0", "film 0", "why")
    assert dataset.question_table().strata == ["why"] * 15
    only = open_dataset(str(tmp_path / "rich.jsonl"), split="train", tasks=["rationale"])
    assert only.example_ids[0] == "train-1:rationale"
    # Items on one picture stay together, whatever their boxes.
    first, other = train_of(tmp_path, [choice_row(0, id=str(side), boxes=[[0, 0, side, side]]) for side in (5, 9)])
    assert (first.image.unit_id == other.image.unit_id, first.cluster == other.cluster) == (False, True)


@settings(max_examples=40)
@given(words=st.lists(st.tuples(st.text("abé ", min_size=1, max_size=4), st.integers(-1, 2)), max_size=6))
def test_tags_point_at_their_words(words: list[tuple[str, int]]) -> None:
    marked = [(text, box) for text, box in words if text.strip()]
    question = " ".join(text if box < 0 else f"[{text}|{box}]" for text, box in marked) or "x"
    candidate = compose([question], "[an answer|0]", 3)
    tagged = [(candidate.text[tag.start : tag.end], tag.box) for tag in candidate.tags]
    assert tagged == [*((" ".join(text.split()), box) for text, box in marked if box >= 0), ("an answer", 0)]
    assert candidate.answer == "an answer"
    assert parse_tagged(f"See {question}", 0)[1] == (), "a bracket is a bracket where there are no boxes"


def test_a_card_renames_a_label_that_rows_to_predict_lack(tmp_path: Path) -> None:
    """What such rows have under our name is something else: the card says how labels are called."""
    train = [class_row(0, split=..., label=..., gold="yes"), class_row(1, split=..., label=..., gold="no")]
    write_json_lines(tmp_path / "train.jsonl", train)
    write_json_lines(tmp_path / "test.jsonl", [class_row(2, split=..., label="a remark")])
    card = tmp_path / "card.toml"
    card.write_text('files = { train = "train.jsonl", test = "test.jsonl" }\n[columns]\nlabel = "gold"\n')
    assert [open_dataset(str(card), split="train")[place].label for place in range(2)] == [1, 0]
    assert open_dataset(str(card), split="test")[0].label is None
    card.write_text(card.read_text().replace("gold", "golt"))
    error = refusal(card, on_error="skip")
    assert (error.what, error.where) == ("The card names a column that no row has.", f"{card} [columns] label")
    assert "column 'golt', which the card gives as 'label', is missing; did you mean gold" in error.why


def test_numbers_of_the_hubs_classes_are_positions(tmp_path: Path, datasets_library: Any) -> None:
    """The library stores a class by its place in a list of names; a card may list them in another order."""
    write_pictures(tmp_path / "pictures")
    columns = {"image": datasets_library.Value("string"), "text": datasets_library.Value("string")}
    label = datasets_library.ClassLabel(names=["1", "2", "3"])
    datasets_library.Dataset.from_list(
        [class_row(number, label=number - 1, split=...) for number in range(1, 4)],
        features=datasets_library.Features({**columns, "label": label}),
    ).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    card = tmp_path / "card.toml"
    for lines, names in (("", ("1", "2", "3")), ('labels = ["3", "2", "1"]\n', ("3", "2", "1"))):
        card.write_text(f'files = "hf:{tmp_path}"\n{lines}')
        dataset = open_dataset(str(card), split="train")
        assert dataset.label_names("classes") == names
        assert [names[dataset[place].label or 0] for place in range(3)] == ["1", "2", "3"]


def test_names_of_sets_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [is_location(name) for name in ("vcr", "pets", "a.jsonl", "hf:x", "./vcr")] == [False, *[True] * 4]
    assert set_name("test", "vcr") == ("vcr", "test")
    assert set_name("a/b.jsonl/test", "vcr") == ("a/b.jsonl", "test")
    names = ("hf:org/name:config", "pets/train.jsonl", "pets/dogs.jsonl", "scenes-vcr")
    assert [*map(dataset_label, names)] == ["hf-org-name-config", "pets", "dogs", "scenes-vcr"]
    monkeypatch.chdir(tmp_path / "pets")
    names = ("../train.jsonl", "..", ".", "../pets/..", "/", "...toml", "./..toml")
    here = tmp_path.name
    assert [*map(dataset_label, names)] == [here, here, "pets", here, *["data"] * 3]


def saved_to_disk(folder: Path, rows: list[dict[str, Any]], library: Any) -> None:
    library.Dataset.from_list(rows).save_to_disk(folder)


def of_splits(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for split in ("train", "test"):
        yield split, [{key: row[key] for key in row if key != "split"} for row in rows if row["split"] == split]


def sharded(folder: Path, rows: list[dict[str, Any]], _: Any) -> None:
    folder.mkdir()
    for split, of_split in of_splits(rows):
        write_parquet(folder / f"{split}-00000-of-00001.parquet", of_split)


def of_pictures(folder: Path, rows: list[dict[str, Any]], _: Any) -> None:
    for split, of_split in of_splits(rows):
        (folder / split).mkdir(parents=True)
        for number, row in enumerate(of_split):
            row["file_name"] = f"{number}.png"
            (folder / split / row["file_name"]).write_bytes(row.pop("image")["bytes"])
        write_json_lines(folder / split / "metadata.jsonl", of_split)


@pytest.mark.parametrize("write", [saved_to_disk, sharded, of_pictures])
def test_a_folder_in_the_layout_of_hugging_face_is_offered_the_command_that_reads_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: Callable[..., None],
    datasets_library: Any,
) -> None:
    monkeypatch.setenv("ADVL_INDEX", str(tmp_path / "index"))
    monkeypatch.setattr(datasets_library.config, "HF_DATASETS_CACHE", tmp_path / "library")
    beside = write_json_lines(tmp_path / "data.jsonl", rows_of(class_row))
    pictures = [(tmp_path / row["image"]).read_bytes() for row in rows_of(class_row)]
    rows = [class_row(number, image={"bytes": content, "path": None}) for number, content in enumerate(pictures)]
    folder = tmp_path / "colours"
    write(folder, rows, datasets_library)
    assert exit_code("datasets", "check", str(folder)) == 5
    message = capsys.readouterr().err
    offered = re.search(r"next: +advl (.*?)   \(", message)
    assert offered is not None
    assert offered[1].endswith(f"hf:{folder}")
    assert exit_code(*offered[1].split()) == 0
    for split in ("train", "test"):
        from_layout, from_rows = (open_dataset(name, split=split) for name in (f"hf:{folder}", str(beside)))
        assert [from_layout[place].candidates for place in range(len(from_layout))] == [
            from_rows[place].candidates for place in range(len(from_rows))
        ]
        assert (from_layout.label_names("classes"), len(from_layout.image_units())) == (
            ("no", "yes"),
            len(from_rows.image_units()),
        )


def test_a_command_opens_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(*arguments: Any, dataset: str, **options: Any) -> Index:
        opened.append(dataset)
        return open_index(*arguments, dataset=dataset, **options)

    monkeypatch.setattr(data_of_rows, "open_index", counted)
    data = write_json_lines(tmp_path / "data.jsonl", rows_of(choice_row))
    assert (exit_code("datasets", "check", data), opened) == (0, [str(data)])
    # A file that changed is read anew.
    write_json_lines(data, rows_of(choice_row)[:-1])
    assert len(open_dataset(str(data), split="test")) == 4
    assert opened == [str(data)] * 2
