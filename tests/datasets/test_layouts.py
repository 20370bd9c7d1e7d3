"""Options beside an answer, in the layouts of public sets: read where the rows leave no doubt, else refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

import datasets
from fake_hub.server import serve_hub
from fake_hub.sets import colour_samples, stored, write_twin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_rows import (
    choice_row,
    class_row,
    data_of,
    labels_of,
    refusal,
    train_of,
    write_json_lines,
    write_parquet,
    write_pictures,
)

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.own.data import rows_dataset
from advl_pipeline.datasets.registry import find_dataset, open_dataset

LETTERS = "ABCDEFGH"
COLOURS = ("red", "green", "blue", "yellow")

LAYOUTS: dict[str, Callable[[list[Any]], dict[str, Any]]] = {
    "list": lambda options: {"options": options},
    "text of a list": lambda options: {"options": repr(options)},
    "object": lambda options: {"options": dict(zip(LETTERS, options, strict=False))},
    "candidates": lambda options: {"candidates": options},
    "choices": lambda options: {"choices": options},
    "letters": lambda options: dict(zip(LETTERS, options, strict=False)),
    "option_1": lambda options: {f"option_{place}": text for place, text in enumerate(options, start=1)},
    "option_a": lambda options: {f"option_{LETTERS[place].lower()}": text for place, text in enumerate(options)},
    "choice_a": lambda options: {f"choice_{LETTERS[place].lower()}": text for place, text in enumerate(options)},
    "Choice A": lambda options: {f"Choice {LETTERS[place]}": text for place, text in enumerate(options)},
}

FORMS: dict[str, Callable[[Sequence[str], int], Any]] = {
    "index": lambda options, right: right,
    "text of an index": lambda options, right: str(right),
    "from 1": lambda options, right: right + 1,
    "letter": lambda options, right: LETTERS[right],
    "text": lambda options, right: options[right],
}


def row_of(number: int, layout: str, answer: Any, options: Sequence[Any], name: str = "answer") -> dict[str, Any]:
    return choice_row(number, choices=..., label=..., split=...) | LAYOUTS[layout](list(options)) | {name: answer}


def right_texts(data: str) -> list[str]:
    train = open_dataset(data, split="train")
    return [
        train[place].candidates[train[place].label or 0].text.removeprefix(f"Which colour has picture {place}? ")
        for place in range(len(train))
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_options_of_public_sets_are_choices(tmp_path: Path, layout: str, form: str) -> None:
    rows = [row_of(place, layout, FORMS[form](COLOURS, place), COLOURS) for place in range(4)]
    data = data_of(tmp_path, rows)
    assert find_dataset(data).tasks == ("choice",)
    assert right_texts(data) == [*COLOURS]
    assert "read as with a card of the lines label_is = " in rows_dataset(data, None).line


SETS = {
    "ai2d": ("hf:lmms-lab/ai2d", "test", "test"),
    "mmbench": ("hf:lmms-lab/MMBench:en", "dev", "val"),
    "mmbench-en": ("hf:lmms-lab/MMBench_EN", "dev", "val"),
}
"""Card -> the set by its name on the hub, its split there, and ours."""


@pytest.mark.parametrize("card", SETS)
def test_a_public_set_means_the_same_with_and_without_a_card(tmp_path: Path, card: str) -> None:
    write_twin(tmp_path, card, colour_samples(24))
    name, theirs, ours = SETS[card]
    with_card, without = (
        open_dataset(name, split=split, data_root=tmp_path) for name, split in ((card, ours), (name, theirs))
    )
    assert without.tasks == ("choice",)
    for place in range(len(with_card)):
        pair = with_card[place], without[place]
        options = [[each.text[each.context_length :] for each in example.candidates] for example in pair]
        assert options[0] == options[1]
        assert pair[0].label == pair[1].label is not None


def test_what_a_public_set_leaves_open_needs_its_card(tmp_path: Path) -> None:
    write_twin(tmp_path, "mmmu", colour_samples(24))
    why = refusal("hf:lmms-lab/MMMU", "validation", data_root=tmp_path).why
    assert "rows have no options" in why
    assert "answer is a letter in" in why
    val = open_dataset("mmmu", split="val", data_root=tmp_path)
    assert val.left_out == "2 rows of val left out by the card", "an open question, and one on two pictures"


CHECK = """
import sys
from advl_cli.main import main
main(["datasets", "check", "hf:advaitgupta/spatial-mm-obj", "--deep"])
"""


def test_a_set_of_the_hub_without_a_card_is_fetched_and_read_as_choices(tmp_path: Path) -> None:
    """Over HTTP, in the columns and files of a set that no card names."""
    columns = {"image": datasets.Image()} | {f"option_{place}": datasets.Value("string") for place in range(1, 5)}
    texts = dict.fromkeys(("question", "answer"), datasets.Value("string"))
    rows = [
        {f"option_{place}": text for place, text in enumerate(sample.choices, start=1)}
        | {"image": stored(sample.picture), "question": sample.question, "answer": LETTERS[sample.right]}
        for sample in colour_samples(12)
    ]
    part = tmp_path / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list(rows, features=datasets.Features(columns | texts)).to_parquet(part)
    with serve_hub() as hub:
        hub.repositories["datasets/advaitgupta/spatial-mm-obj"] = {f"data/{part.name}": part.read_bytes()}
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "ADVL_DATA": str(tmp_path / "data")}
        done = subprocess.run(
            [sys.executable, "-c", CHECK], env=os.environ | home, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "task choice, from the columns image, question, choices, label" in done.stderr
    assert 'label_is = "letter" | columns = { label = "answer", choices = ["option_1", "option_2"' in done.stderr


def test_answers_that_the_library_numbers_are_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "org" / "open"
    folder.mkdir(parents=True)
    kinds: dict[str, Any] = dict.fromkeys(("image", "question"), datasets.Value("string"))
    rows = [choice_row(0, choices=..., label=..., split=..., answer=1)]
    features = datasets.Features(kinds | {"answer": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    assert open_dataset("hf:org/open", split="train", data_root=tmp_path).label_names("answers") == ("yes",)


UNDECIDED: dict[str, tuple[list[tuple[Sequence[str], Any]], str]] = {
    "an answer in words": ([(COLOURS, "a red thing"), (COLOURS, "green")], "in 1 of 2 rows"),
    "a position from 0 or from 1": (
        [(COLOURS, 1), (COLOURS, 2)],
        "a position from 0 or a position from 1 in every row",
    ),
    "a position or a text": ([(("1", "0"), "0"), (("0", "1"), "1")], "a position from 0 or the text of an option"),
    "a letter or a text": ([(("B", "A"), "A"), (("A", "B"), "A")], "a letter or the text of an option in every row"),
    "two letters": ([(COLOURS, "AB"), (COLOURS, "C")], "has 'AB' beside ['red'"),
    "options in a text": ([("A. red\nB. blue", "A"), ("A. red\nB. blue", "B")], "options is a text"),
    "some rows without options": ([(COLOURS, "A"), ([], "three")], "1 rows have no options, 1 have some"),
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_what_rows_leave_open_is_refused_with_the_lines_that_settle_it(tmp_path: Path, case: str) -> None:
    given, why = UNDECIDED[case]
    rows = [row_of(place, "list", answer, []) | {"options": options} for place, (options, answer) in enumerate(given)]
    data = data_of(tmp_path, rows)
    error = refusal(data, on_error="skip")
    assert (error.exit_code, error.what) == (5, "The rows do not say how options and answers belong together.")
    assert why in error.why
    lines = re.search(r"the lines (.*?); or, ", error.next_command)
    assert lines is not None
    card = data_of(tmp_path, rows, lines[1].replace(" | ", "\n") + "\n")
    assert find_dataset(card).tasks == ("choice",)
    assert len(open_dataset(card, split="train", on_error="skip")) >= 1
    rest = [line for line in lines[1].split(" | ") if not line.startswith(("label_is", "first_label"))]
    for other in re.findall(r"for another reading, (.*?); or, ", error.next_command):
        card = data_of(tmp_path, rows, "\n".join([*other.split(" | "), *rest, ""]))
        assert len(open_dataset(card, split="train")) == len(rows)
    assert find_dataset(data_of(tmp_path, rows, 'task = "answers"\n')).tasks == ("answers",)


def test_a_form_that_the_card_names_is_obeyed(tmp_path: Path) -> None:
    rows = [row_of(place, "list", answer, ("B", "A")) for place, answer in enumerate("AB")]
    assert right_texts(data_of(tmp_path, rows, 'label_is = "letter"\n')) == ["B", "A"]
    assert right_texts(data_of(tmp_path, rows, 'label_is = "text"\n')) == ["A", "B"]
    rows = [row_of(0, "list", 1, COLOURS)]
    assert [right_texts(data_of(tmp_path, rows, f"first_label = {first}\n")) for first in (0, 1)] == [
        ["green"],
        ["red"],
    ]


@pytest.mark.parametrize(
    ("beside", "why"),
    [
        ({"A": "red", "B": "blue"}, "options and A, B both look like options"),
        ({"label": 0}, "beside them stand label and answer"),
        ({"text": "It is red."}, "as in rows of classes"),
    ],
)
def test_columns_that_look_alike_are_refused(tmp_path: Path, beside: Mapping[str, Any], why: str) -> None:
    data = data_of(tmp_path, [row_of(0, "list", "A", COLOURS) | beside])
    assert why in refusal(data).why


def test_a_row_with_options_among_open_questions_is_no_open_question(tmp_path: Path) -> None:
    rows = [choice_row(0, choices=..., label=..., answer="red"), row_of(1, "list", "B", COLOURS)]
    assert "the row has options (options), the first row" in refusal(data_of(tmp_path, rows)).why
    empty = [row_of(place, "list", "red", []) for place in range(2)]
    assert find_dataset(data_of(tmp_path, empty)).tasks == ("answers",), "columns without a cell are no options"


def test_rows_of_json_may_lack_the_columns_of_missing_options(tmp_path: Path) -> None:
    rows = [row_of(0, "letters", "A", ["red", "green"]), row_of(1, "letters", "D", COLOURS)]
    del rows[1]["B"]
    assert right_texts(data_of(tmp_path, rows)) == ["red", "yellow"]


@pytest.mark.parametrize("missing", [None, "", " ", "nan"])
def test_a_missing_option_is_no_option_and_keeps_its_letter(tmp_path: Path, missing: Any) -> None:
    rows = [
        row_of(0, "letters", "D", ["red", "green", missing, "blue"]),
        row_of(1, "letters", "B", ["red", "green", missing, missing]),
        row_of(2, "letters", "A", ["red", "green", "blue", "white"]),
    ]
    data = data_of(tmp_path, rows)
    train = open_dataset(data, split="train")
    assert [len(train[place].candidates) for place in range(3)] == [3, 2, 4]
    assert right_texts(data) == ["blue", "green", "red"]
    rows.append(row_of(3, "letters", "C", ["red", "green", missing, "blue"]))
    assert "answer is a letter in 3 of 4 rows" in refusal(data_of(tmp_path, rows)).why
    card = 'task = "choice"\ncolumns = { choices = ["A", "B", "C", "D"], label = "answer" }\n'
    assert "expected an option that is there" in refusal(data_of(tmp_path, rows, card)).why


def test_a_column_of_nothing_but_nan_has_no_options(tmp_path: Path) -> None:
    rows = [row_of(place, "letters", "AB"[place], ["red", "green", float("nan")]) for place in range(2)]
    train = open_dataset(str(write_parquet(tmp_path / "train.parquet", rows)), split="train")
    assert [len(train[place].candidates) for place in range(2)] == [2, 2]


# Labels that count from 1.


def labelled(labels: Sequence[Any], split: Any = ..., **changes: Any) -> list[dict[str, Any]]:
    return [
        choice_row(place, choices=[*COLOURS], label=label, split=split, **changes)
        for place, label in enumerate(labels)
    ]


FROM_ONE: dict[str, tuple[list[dict[str, Any]], str]] = {
    "the number of choices, and no 0": (labelled([1, 2, 4]), "jsonl:3 has the label 4 of 4, and none is 0"),
    "as text": (labelled(["1", "2", "4"]), "labels seem to count from 1: "),
    "the last option is never right": (labelled([1, 2, 3] * 9), "labels may count from 1: none of 27 is 0"),
    "of rationales": (
        labelled([0, 1, 2], rationales=["a", "b"], rationale_label=2),
        "has the label 2 of 2, and none is 0",
    ),
}


@pytest.mark.parametrize("case", FROM_ONE)
@pytest.mark.parametrize("on_error", ["fail", "skip", "list"])
def test_labels_from_one_are_refused_with_the_line_that_mends_them(tmp_path: Path, case: str, on_error: str) -> None:
    rows, why = FROM_ONE[case]
    error = refusal(data_of(tmp_path, rows), on_error=on_error)
    assert (error.exit_code, error.what.endswith("may be off by one.")) == (5, True)
    assert why in error.why
    assert "first_label = 1" in error.next_command
    if case != "of rationales":
        train = train_of(tmp_path, rows, "first_label = 1\n")
        assert labels_of(train) == [int(row["label"]) - 1 for row in rows]
    if case == "the last option is never right":
        assert labels_of(train_of(tmp_path, rows, "first_label = 0\n")) == [row["label"] for row in rows]


def test_a_split_without_its_last_option_counts_as_the_others_do(tmp_path: Path) -> None:
    rows = labelled([1, 2, 4], "train") + labelled([1, 2, 3], "val") + labelled([0, 4], "test")
    data = data_of(tmp_path, rows)
    assert "labels seem to count from 1" in refusal(data, "val").why
    # Where one is 0, a label beyond the choices is a bad row.
    assert labels_of(open_dataset(data, split="test", on_error="skip")) == [0]


def test_classes_of_a_card_that_are_numbered_from_one_are_refused(tmp_path: Path) -> None:
    rows = [class_row(place, label=label, split=...) for place, label in enumerate([1, 2, 3])]
    card = 'labels = ["no", "perhaps", "yes"]\n'
    assert "labels seem to count from 1" in refusal(data_of(tmp_path, rows, card), on_error="skip").why
    assert labels_of(train_of(tmp_path, rows, f"first_label = 1\n{card}")) == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["1", "2", "3", "4"], [0, 1, 3]),
        (["0", "1", "2", "3"], [0, 1, 3]),
        (["A", "B", "C", "D"], [0, 1, 3]),
        # The classes are texts of the choices.
        (["blue", "green", "red", "yellow"], [2, 1, 3]),
        (["1", "2", "3"], None),
    ],
)
@pytest.mark.parametrize("label", ["label", "answer"])
def test_choices_that_the_library_numbers(
    tmp_path: Path, names: list[str], found: list[int] | None, label: str
) -> None:
    """A column of classes is stored as numbers from 0, whatever the classes are called."""
    folder = tmp_path / "org" / "quiz"
    folder.mkdir(parents=True)
    kinds: dict[str, Any] = dict.fromkeys(("image", "question"), datasets.Value("string"))
    kinds |= {"choices": datasets.List(datasets.Value("string")), label: datasets.ClassLabel(names=names)}
    rows = [row | {label: row.pop("label")} for row in labelled([0, 1, min(3, len(names) - 1)])]
    write_pictures(folder / "pictures")
    part = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    part.to_parquet(folder / "train-00000-of-00001.parquet")
    data = "hf:org/quiz"
    if found is None:
        why = refusal(data, data_root=tmp_path, on_error="skip").why
        doubt = "labels are named 1 to 3, and a question has 4 choices"
        assert (doubt if label == "label" else "may be a position from 0 or a position from 1") in why
    else:
        assert labels_of(open_dataset(data, split="train", data_root=tmp_path)) == found


TEXTS = st.sampled_from(["red", "green", "A", "B", "C", "0", "1", "2", "3", "nan", ""])


@st.composite
def written_rows(draw: st.DrawFn) -> tuple[str, str, str, list[tuple[list[str], int]]]:
    """Draw a layout, a form, the name of the label, and rows as options with the place of the right one."""
    layout, form = draw(st.sampled_from([*LAYOUTS])), draw(st.sampled_from([*FORMS]))
    name = draw(st.sampled_from(["answer", "label"]))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        options = draw(st.lists(TEXTS, min_size=2, max_size=4, unique=True))
        there = [place for place, text in enumerate(options) if text not in ("nan", "")]
        if len(there) >= 2:
            rows.append((options, draw(st.sampled_from(there))))
    return layout, form, name, rows


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(written=written_rows(), seed=st.randoms(use_true_random=False))
def test_no_layout_is_accepted_whose_meaning_is_a_guess(written: Any, seed: Any) -> None:
    """What is accepted without a card names the option that its writer meant, in whatever order the options stand."""
    layout, form, name, rows = written
    if form == "from 1" and layout in ("choices", "choice_a") and name == "label":
        return  # `label` beside `choices` is documented: it counts from 0.
    orders: list[list[tuple[list[str], int]]] = [rows, []]
    for options, right in rows:
        order = seed.sample(range(len(options)), len(options))
        orders[1].append(([options[place] for place in order], order.index(right)))
    with tempfile.TemporaryDirectory() as folder:
        for number, ordered in enumerate(orders):
            stored = [
                row_of(place, layout, FORMS[form](options, right), options, name)
                for place, (options, right) in enumerate(ordered)
            ]
            data = write_json_lines(Path(folder) / f"{number}.jsonl", stored)
            try:
                found = right_texts(str(data))
            except DatasetError:
                continue
            assert found == [options[right] for options, right in ordered]
