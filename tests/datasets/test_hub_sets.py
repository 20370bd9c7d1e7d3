"""Sets of the hub: what a card says of rows, rule by rule, what cannot be had, and pictures fetched by need."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import advl, printed
from fake_hub.server import serve_hub
from own_rows import choice_row, data_of, refusal

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.base.packages import data_files
from advl_pipeline.datasets.cards import ROWS, card_names, load_card
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.own import card_rules, hub, remote_pictures
from advl_pipeline.datasets.own.card_rules import split_options
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.subsets import Selected
from advl_pipeline.teachers.text_units import covering_texts

pytest.importorskip("datasets")

import datasets
from fake_hub.sets import TWINS, Sample, colour_samples, write_twin


def choices_of(data: str, place: int = 0, **options: Any) -> tuple[list[str], int | None]:
    example = open_dataset(data, split="train", **options)[place]
    return [candidate.text[candidate.context_length :].strip() for candidate in example.candidates], example.label


WITH_OPTIONS = 'options_in_question = true\ntask = "choice"\n[constants]\nchoices = ["Yes", "No"]\n'


@pytest.mark.parametrize(
    ("cells", "card", "expected"),
    [
        ({"choice_a": "red", "choice_b": "blue", "choice_c": None, "label": "B"}, "", (["red", "blue"], 1)),
        # MMBench names them by the letter alone; a column that is empty is no choice.
        (
            {"A": "red", "B": "blue", "C": "", "D": "", "label": "B"},
            '[columns]\nchoices = ["A", "B", "C", "D"]\n',
            (["red", "blue"], 1),
        ),
        ({"question": "Which? (A) red (B) blue", "label": "A"}, WITH_OPTIONS, (["red", "blue"], 0)),
        # A card's own choices stand in for no option that is not found.
        ({"question": "Is it red?", "label": "No"}, WITH_OPTIONS, (["Yes", "No"], 1)),
        ({"question": "Which? a) red b) blue", "label": "A"}, WITH_OPTIONS, "field 'choices' is missing"),
    ],
)
def test_where_the_choices_of_a_question_stand(
    tmp_path: Path, cells: dict[str, Any], card: str, expected: Any
) -> None:
    data = data_of(tmp_path, [choice_row(0, choices=..., split=..., **cells)], card)
    if isinstance(expected, str):
        assert expected in refusal(data).why
    else:
        assert choices_of(data) == expected


def test_texts_of_several_columns_are_joined(tmp_path: Path) -> None:
    rows = [choice_row(0, split=..., hint="A hint."), choice_row(1, split=..., hint="")]
    data = data_of(tmp_path, rows, '[columns]\nquestion = ["hint", "question"]\n')
    train = open_dataset(data, split="train")
    assert [train[place].candidates[0].text.split(" Which")[0] for place in (0, 1)] == [
        "A hint.",
        "Which colour has picture 1? blue",
    ]


def test_options_in_the_text_of_a_question() -> None:
    for text, question, options in (
        ("Which?\nOptions: A: A dog., B: Two, C: no", "Which?", ["A dog.", "Two", "no"]),
        ("Which one?\n\nA. left\nB. right\nAnswer with the letter.", "Which one?", ["left", "right"]),
        ("Where? (A) in the U.S.A. (B) at home", "Where?", ["in the U.S.A.", "at home"]),
        ("Is plan A. good? How many?", "Is plan A. good? How many?", None),
        # NaturalBench.
        ("What is on it? Option: A:Knit cap; B:Helmet;", "What is on it?", ["Knit cap", "Helmet"]),
        # MMStar: a sentence of geometry ends in the name of a point.
        (
            "A line touches circle O at point A. If OB is 5, how long is it?\nOptions: A: 3, B: 4, C: 5, D: 6",
            "A line touches circle O at point A. If OB is 5, how long is it?",
            ["3", "4", "5", "6"],
        ),
        (
            "Of group A: the cat. How many are in B: two?\nA. 1\nB. 2\nC. 3",
            "Of group A: the cat. How many are in B: two?",
            ["1", "2", "3"],
        ),
        ("Options: what? Options: A: Plan A. of two, B: Plan B.", "Options: what?", ["Plan A. of two", "Plan B."]),
        ("Take A. or B. now?\nA. left\nB. right", "Take A. or B. now?", ["left", "right"]),
        (None, None, None),
    ):
        assert split_options(text) == (question, options)


def test_rows_that_the_card_leaves_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [choice_row(number, kind="plain" if number % 4 else "odd") for number in range(20)]
    rows[1]["image"] = None
    data = data_of(tmp_path, rows, 'needs = ["image"]\n[only]\nkind = ["plain", "other"]\n')
    assert len(open_dataset(data, split="train")) == 15 - 4 - 1
    out, err = printed(capsys, "datasets", "check", data)
    # The split of a row that is left out is that of its file, or train.
    assert "6 rows of train left out by the card" in err
    assert "6 rows of train left out by the card" in out


def test_the_right_choice_is_first_and_the_order_is_drawn_by_the_rows_name(tmp_path: Path) -> None:
    rows = [choice_row(number, label=..., split=..., choices=["right", "a", "b", "c"]) for number in range(20)]
    orders = []
    for part in (rows, rows[:9]):
        data = data_of(tmp_path, part, "right_choice_first = true\n")
        train = open_dataset(data, split="train")
        labels = [train[place].label for place in range(len(part))]
        assert all(choices_of(data, place)[0][label or 0] == "right" for place, label in enumerate(labels))
        orders.append(labels)
    assert set(orders[0]) == {0, 1, 2, 3}
    assert orders[0][:9] == orders[1]


def test_a_list_of_python_in_a_text_is_a_list(tmp_path: Path) -> None:
    write_twin(tmp_path, "aokvqa", colour_samples(20))
    card = tmp_path / "open.toml"
    card.write_text(
        f'files = "hf:{tmp_path}/HuggingFaceM4/A-OKVQA"\ntask = "answers"\n[columns]\nanswers = "direct_answers"\n'
        '[split_names]\ntest = ""\n'
    )
    train = open_dataset(str(card), split="train")
    assert dict(train[0].soft_label) == {train.label_names("answers").index("red"): 1.0}, "five of ten gave it"
    bad = data_of(tmp_path / "b", [{"image": "pictures/red.png", "question": "?", "answers": "['a', print(1)]"}])
    assert "begins like JSON but is not" in refusal(bad).why


def test_a_row_that_is_several_items(tmp_path: Path) -> None:
    write_twin(tmp_path, "naturalbench", colour_samples(20))
    test = open_dataset("naturalbench", split="test", data_root=tmp_path)
    assert test.is_grouped
    assert test.left_out == "", "all groups count: those of yes and no, and those of two options"
    first = [test[place] for place in range(4)]
    assert [example.label for example in first] == [0, 1, 1, 0]
    assert [example.image.unit_id == first[0].image.unit_id for example in first] == [True, False, True, False]
    assert len({example.cluster for example in first}) == 1
    assert test[4].cluster != test[0].cluster
    texts = [[candidate.text for candidate in test[place].candidates] for place in (16, 17)]
    assert texts[0][0].endswith("? a knit cap"), "the options of a question are its own"
    assert [test[place].label for place in range(16, 20)] == [0, 1, 1, 0]


def test_two_configurations_are_joined_by_a_key(tmp_path: Path) -> None:
    samples = colour_samples(20)
    write_twin(tmp_path, "gqa", samples)
    train = open_dataset("gqa", split="train", data_root=tmp_path)
    assert len(train) == 10
    assert len(train.image_units()) == 5, "a picture is stored once, and that of no question is not"
    examples = {example.example_id: example for example in map(train.__getitem__, range(10))}
    for number in range(10):
        assert examples[f"{number:07}"].image.path.read_bytes() == samples[number // 2 * 2].picture
    # A question whose picture is not there is named, and the others stay.
    folder = tmp_path / "lmms-lab/GQA/train_balanced_images"
    (part,) = folder.glob("*.parquet")
    kept = datasets.Dataset.from_parquet(str(part), cache_dir=str(tmp_path / "cache")).select(range(4))
    kept.to_parquet(part)
    why = "column 'imageId' is 'n0', which no joined row has as its 'id'"
    assert why in refusal("gqa", data_root=tmp_path).why
    assert len(open_dataset("gqa", split="train", data_root=tmp_path, on_error="skip")) == 6


def test_rationales_are_chosen_among_those_of_other_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_rules, "_BLOCK", 32)
    write_twin(tmp_path, "aokvqa-rationales", colour_samples(80))
    train = open_dataset("aokvqa-rationales", split="train", data_root=tmp_path)
    chosen = [train[place] for place in range(len(train)) if train[place].task == "rationale"]
    assert len(chosen) == 40
    places = []
    for number, example in enumerate(chosen):
        texts = [candidate.text[candidate.context_length :].strip() for candidate in example.candidates]
        assert len(set(texts)) == 4
        assert texts[example.label or 0].startswith(f"{number} shows ")
        places.append(example.label)
    assert set(places) == {0, 1, 2, 3}
    # Without the rule they explain the answer, and are left alone.
    assert open_dataset("aokvqa", split="train", data_root=tmp_path).tasks == ("choice",)


def test_the_first_rows_are_read_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVL_INDEX", str(tmp_path / "index"))
    write_twin(tmp_path, "sugarcrepe", colour_samples(30))
    folder = tmp_path / "HuggingFaceM4/SugarCrepe_swap_obj/data"
    (whole,) = folder.glob("*.parquet")
    whole.rename(folder / "test-00000-of-00002.parquet")
    (folder / "test-00001-of-00002.parquet").write_bytes(b"PAR1 of 28 GB that nobody needs PAR1")
    card = tmp_path / "first.toml"
    rules = (
        f'files = "hf:{folder.parent}"\nright_choice_first = true\n'
        '[columns]\nchoices = "tested_labels"\n[constants]\nquestion = "Which?"\n[split_names]\ntest = "train"\n'
    )
    card.write_text(f"num_rows = 20\n{rules}")
    train = open_dataset(str(card), split="train")
    assert len(train) == 20
    assert len(list((tmp_path / "index").rglob("pictures/*"))) == 20, "pictures of other rows stay away"
    card.write_text(rules)
    error = refusal(str(card))
    assert (error.what, error.exit_code) == ("The rows of the dataset cannot be read on.", 5)
    assert "after row 30" in error.where


def test_several_pictures_in_a_row_are_refused(tmp_path: Path) -> None:
    write_twin(tmp_path, "naturalbench", colour_samples(10))
    assert "the row holds several pictures (Image_0, Image_1), and an item is about one" in (
        refusal(f"hf:{tmp_path}/BaiqiL/NaturalBench").why
    )


# What cannot be had: what, why, the next command, and nothing half written.


def test_a_set_that_is_not_here_says_what_would_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    out, _ = printed(capsys, "datasets", "check", "aokvqa", "--data-root", tmp_path, code=5)
    assert out.count("missing    hf:HuggingFaceM4/A-OKVQA@d1b0efa3a436e9101dfbde3752db7607da696c35") == 3
    assert "not here: HF_HUB_OFFLINE is set; would be fetched: 1.32 GB" in out
    revision = "d1b0efa3a436e9101dfbde3752db7607da696c35"
    assert (
        f"hf download --repo-type dataset HuggingFaceM4/A-OKVQA --revision {revision} --local-dir {tmp_path}" in out
    )
    _, out, _ = advl(capsys, "datasets", "list", "--data-root", tmp_path)
    assert "aokvqa           absent  choice" in out
    _, out, _ = advl(capsys, "datasets", "card", "gqa")
    assert 'train = "hf:lmms-lab/GQA:train_balanced_instructions@' in out
    _, err = printed(capsys, "extract", "--teacher", "minilm-l6", "--data", "aokvqa", "--data-root", tmp_path, code=5)
    assert "The dataset could not be downloaded from the hub." in err
    assert not any(tmp_path.iterdir())


def builder_of(size: int) -> Any:
    """Return what the library knows of a set that it has not downloaded."""
    info = types.SimpleNamespace(builder_name="parquet", dataset_size=size, download_size=None)
    config = types.SimpleNamespace(data_files=None)
    return type("Parquet", (), {"cache_dir": Path("absent"), "info": info, "config": config})()


@pytest.mark.parametrize(
    ("name", "answer", "why", "following"),
    [
        ("hf:a/b@abc", "Dataset 'a/b' is a gated dataset on the Hub.", "accept their terms", "hf auth login"),
        (
            "hf:a/b@abc",
            "Revision 'abc' doesn't exist for dataset 'a/b'.",
            "the revision abc is gone",
            "/commits/main",
        ),
        ("hf:a/b@abc", "Dataset 'a/b' doesn't exist on the Hub.", "doesn't exist on the Hub", "CONFIGURATION"),
        # Pictures of a set with a revision are fetched one by one (below).
        ("hf:a/b", builder_of(10**18), "it takes 2,000,000,000.0 GB, and ", "num_rows = 20000"),
    ],
)
def test_what_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, why: str, following: str
) -> None:
    def load_builder(*_: Any, **__: Any) -> Any:
        if isinstance(answer, str):
            raise datasets.exceptions.DatasetNotFoundError(answer)
        return answer

    monkeypatch.setattr(hub, "hub_obstacle", lambda: "")
    monkeypatch.setattr(hub.hub_files, "_card_text", lambda *_: "")
    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    error = refusal(name, data_root=tmp_path)
    assert (error.exit_code, error.where) == (5, name)
    assert why in error.why
    assert following in error.next_command
    assert not any(tmp_path.iterdir())


def test_a_loading_script_is_not_run_and_the_set_in_parquet_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "HuggingFaceM4/VQAv2"
    folder.mkdir(parents=True)
    (folder / "VQAv2.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    error = refusal("hf:HuggingFaceM4/VQAv2", data_root=tmp_path)
    assert error.why == "it is a loading script, and code of a repository is never run"
    assert error.next_command.startswith("advl datasets card vqa-v2-hf")
    assert not (tmp_path / "ran").exists()


def test_a_column_that_has_changed_its_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_twin(tmp_path, "aokvqa", colour_samples(20))
    (file,) = (tmp_path / "HuggingFaceM4/A-OKVQA/data").glob("validation*")
    whole = pq.read_table(file)
    place = whole.schema.get_field_index("correct_choice_idx")
    pq.write_table(whole.set_column(place, "correct_choice_idx", pa.array(["the first"] * len(whole))), file)
    out, err = printed(capsys, "datasets", "check", "aokvqa", "--data-root", tmp_path, code=5)
    assert (out, "after row 0" in err) == ("", True)
    assert "Failed to parse string: 'the first'" in err
    assert "look whether the network is there and whether the set has changed" in err


def test_every_card_of_rows_has_a_twin_and_says_what_must_be_known() -> None:
    cards: Mapping[str, Any] = {name: load_card(name) for name in card_names() if load_card(name).format == ROWS}
    assert {name for name, card in cards.items() if not card.reader} == set(TWINS)
    for name, card in cards.items():
        for key in ("licence", "size", "scoring", "chance", "seen", "tried", "homepage", "metrics"):
            assert card.facts[key], (name, key)
        files = {} if card.reader else card.facts["files"]
        for file in [files] if isinstance(files, str) else files.values():
            assert file.startswith("hf:"), name
            assert "@" in file, f"{name}: revisions are pinned"


# Pictures in Parquet are fetched when they are needed: a subset costs its own row groups.


PICTURE_BYTES = 100_000
GROUP_ROWS = 4


def large_samples(count: int) -> list[Sample]:
    """Return samples whose pictures are large beside their texts: noise follows what decoders read."""
    noise = random.Random(0)
    return [
        Sample(sample.picture + noise.randbytes(PICTURE_BYTES), sample.question, sample.choices, sample.right)
        for sample in colour_samples(count)
    ]


class Counted:
    """Counts the bytes that are read of files of this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_bytes = 0
        counted = self

        class File(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                counted.num_bytes += (num_read := super().readinto(buffer) or 0)
                return num_read

            def read(self, size: int = -1) -> bytes:
                counted.num_bytes += len(content := super().read(size) or b"")
                return content

        monkeypatch.setattr(remote_pictures, "open_file", lambda place: File(place, "rb"))


@pytest.mark.parametrize("card", ["snli-ve-hf", "gqa"])
def test_a_subset_reads_its_own_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str) -> None:
    samples = large_samples(160)
    write_twin(tmp_path, card, samples, group_rows=GROUP_ROWS)
    counted = Counted(monkeypatch)
    train = open_dataset(card, split="train", data_root=tmp_path)
    drawn = Selected(train, nested_subset(train, 3, 0))
    train.content_digest()
    assert counted.num_bytes < 0.1 * PICTURE_BYTES * len(samples), "rows are read without their pictures"
    before = counted.num_bytes
    for dataset in (train, drawn):
        covering_texts(dataset, 0.5)
    assert counted.num_bytes == before, "texts are chosen without a picture"
    pictures = drawn.image_units()
    assert {picture.path.read_bytes() for picture in pictures} <= {sample.picture for sample in samples}
    groups = len(pictures) * GROUP_ROWS * PICTURE_BYTES
    assert counted.num_bytes - before < 1.2 * groups < PICTURE_BYTES * len(train.question_table().question_ids) / 2
    kept = counted.num_bytes
    open_dataset(card, split="train", data_root=tmp_path)
    drawn.image_units()
    assert counted.num_bytes == kept, "what is here is not read again"


@pytest.mark.parametrize("card", ["aokvqa-rationales", "gqa", "naturalbench", "whatsup"])
def test_pictures_and_identity_are_those_of_the_whole_set(tmp_path: Path, card: str) -> None:
    """As the same rows have them without a revision, which are read with their pictures."""
    write_twin(tmp_path, card, colour_samples(24), group_rows=5)
    whole_card = tmp_path / "whole.toml"
    whole_card.write_text(re.sub(r"@[0-9a-f]{7,40}\"", '"', data_files("cards")[card].read_text()))
    for split in load_card(card).splits:
        held, whole = (open_dataset(name, split=split, data_root=tmp_path) for name in (card, str(whole_card)))
        assert held.example_ids == whole.example_ids
        if split == "train":
            assert nested_subset(held, 3, 0) == nested_subset(whole, 3, 0)
        for example, other in zip(map(held.__getitem__, range(len(held))), whole, strict=False):
            assert (example.image.unit_id, example.label) == (other.image.unit_id, other.label)
            assert example.candidates == other.candidates
        assert {unit.unit_id for unit in held.image_units()} == {unit.unit_id for unit in whole.image_units()}


def test_pictures_for_which_the_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_twin(tmp_path, "cv-bench", large_samples(40), group_rows=GROUP_ROWS)
    test = open_dataset("cv-bench", split="test", data_root=tmp_path)
    free = 5 * GROUP_ROWS * PICTURE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2 * free, free, free))
    with pytest.raises(DatasetError) as caught:
        test.image_units()
    assert (caught.value.what, caught.value.exit_code) == ("The dataset does not fit on the disk.", 5)
    assert "--shots" in caught.value.next_command
    assert not list(tmp_path.rglob("pictures/*")), "nothing is half written"
    # A part of it fits, and what is here needs no more room.
    part = Selected(test, nested_subset(test, 3, 0))
    assert len(part.image_units()) == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2 * free, 2 * free, 0))
    assert len(part.image_units()) == 3


def test_pictures_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is gone, and there is no network: rows are still known, and a picture says where it is held."""
    write_twin(tmp_path, "cv-bench", large_samples(8), group_rows=GROUP_ROWS)
    test = open_dataset("cv-bench", split="test", data_root=tmp_path)
    assert test[0].image.path.is_file()
    shutil.rmtree(tmp_path / "nyu-visionx")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError) as caught:
        test.image_units()
    assert caught.value.what == "Pictures of the dataset cannot be fetched."
    assert "HF_HUB_OFFLINE is set" in caught.value.why
    assert "test-00000-of-00001.parquet, row group" in caught.value.where
    assert "same command again" in caught.value.next_command


PART = """
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.subsets import Selected

train = open_dataset("snli-ve-hf", split="train")
Selected(train, nested_subset(train, 4, 0)).image_units()
"""


@pytest.mark.slow
def test_a_subset_fetches_its_part_from_the_hub(tmp_path: Path) -> None:
    """Over HTTP, as the libraries of the hub ask; `test_public_sets_end_to_end.py` does by commands."""
    write_twin(tmp_path / "copy", "snli-ve-hf", large_samples(100), group_rows=GROUP_ROWS)
    copy = tmp_path / "copy/sedrickkeh/snli-ve"
    files = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*.parquet")}
    with serve_hub() as hub:
        hub.repositories["datasets/sedrickkeh/snli-ve"] = files
        hub.commits[str(load_card("snli-ve-hf").facts["files"]).partition("@")[2]] = files
        # The libraries of the hub read where it is once, when they are imported.
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "ADVL_DATA": str(tmp_path / "data")}
        subprocess.run([sys.executable, "-c", PART], env=os.environ | home, check=True)
        sent = sum(count for path, count in hub.sent.items() if path.endswith(".parquet"))
    assert 4 * PICTURE_BYTES < sent < 0.25 * sum(map(len, files.values()))
    assert len(list((tmp_path / "data").rglob("pictures/*"))) <= 4 * GROUP_ROWS


# Pictures that lie beside JSON or CSV in a repository, in folders or in a zip archive.


def rows_beside(form: str, folder: str) -> dict[str, bytes]:
    """Return the file of rows of a repository whose pictures are `folder/NUMBER.png`."""
    rows: list[dict[str, Any]] = [
        {"image": f"{folder}{number}.png", "question": sample.question, "answer": "red"}
        for number, sample in enumerate(colour_samples(4))
    ]
    if form == "csv":
        lines = ["image,question,answer", *(",".join(row.values()) for row in rows)]
        return {"train.csv": "\n".join(lines).encode()}
    if form == "jsonl":
        return {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    chats = [{"id": str(number), "image": row["image"], "conversations": turns} for number, row in enumerate(rows)]
    return {"chat.json": json.dumps(chats).encode()}


def pictures_beside(folder: str) -> dict[str, bytes]:
    return {f"{folder}{number}.png": sample.picture for number, sample in enumerate(colour_samples(4))}


def zipped(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in files.items():
            archive.writestr(name, part)
    return content.getvalue()


def laid_out(root: Path, files: Mapping[str, bytes]) -> str:
    """Write a copy of a repository as `hf download` does; return its name."""
    for name, content in files.items():
        (root / "org/chats" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "org/chats" / name).write_bytes(content)
    return "hf:org/chats"


@pytest.mark.parametrize("form", ["jsonl", "csv", "llava"])
@pytest.mark.parametrize(("folder", "inside"), [("images/", "images/"), ("images/", ""), ("", "")])
def test_pictures_in_an_archive_beside_rows_are_unpacked_by_the_printed_command(
    tmp_path: Path, form: str, folder: str, inside: str
) -> None:
    name = laid_out(tmp_path, rows_beside(form, folder) | {"images.zip": zipped(pictures_beside(inside))})
    command = refusal(name, data_root=tmp_path).next_command
    assert command.startswith("python -m zipfile -e ")
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    train = open_dataset(name, split="train", data_root=tmp_path)
    assert (train.tasks, len(train.image_units())) == (("answers",), 4)


def test_an_archive_of_other_files_or_none_is_not_offered(tmp_path: Path) -> None:
    files = rows_beside("jsonl", "images/") | {"images.zip": zipped({"images/x.png": b"x"}), "broken.zip": b"PK"}
    name = laid_out(tmp_path, files)
    os.mkfifo(tmp_path / "org/chats/pipe.zip")
    assert refusal(name, data_root=tmp_path).next_command.startswith("advl datasets check")


@pytest.mark.parametrize("rows", ["train", "chat"])
def test_rows_beside_many_pictures_are_read_and_not_the_pictures_alone(tmp_path: Path, rows: str) -> None:
    """The library would read such a repository as a folder of pictures."""
    (content,) = rows_beside("llava", "").values()
    name = laid_out(tmp_path, {f"{rows}.json": content} | pictures_beside(""))
    assert open_dataset(name, split="train", data_root=tmp_path).tasks == ("answers",)
    # Several files that are no splits say nothing of each other.
    laid_out(tmp_path / "b", {f"{rows}.json": content, "other.json": content} | pictures_beside(""))
    assert open_dataset(name, split="train", data_root=tmp_path / "b").tasks == (
        ("answers",) if rows == "train" else ()
    )


LLAVA = """
import sys
from advl_cli.main import main
main(["datasets", "check", "hf:org/chats"])
"""


def test_pictures_beside_rows_on_the_hub_are_fetched_by_the_printed_command(tmp_path: Path) -> None:
    """Over HTTP, two in a folder and two in an archive: a command copies the repository, and another unpacks it."""
    data = tmp_path / "data"
    pictures = pictures_beside("images/")
    in_folder = dict([*pictures.items()][:2])
    home = {"HF_HOME": str(tmp_path / "home"), "ADVL_DATA": str(data), "PATH": f"{Path(sys.executable).parent}:/bin"}
    with serve_hub() as hub:
        files = rows_beside("jsonl", "images/") | in_folder | {"images.zip": zipped(pictures)}
        hub.repositories["datasets/org/chats"] = files
        environment = os.environ | home | {"HF_ENDPOINT": hub.endpoint}
        words = [sys.executable, "-c", LLAVA]
        checked = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        (command,) = re.findall(r"next: (hf download .*?)   \(", checked.stdout)
        assert checked.returncode == 5
        assert command == f"hf download --repo-type dataset org/chats --local-dir {data}/org/chats"
        subprocess.run(shlex.split(command), env=environment, check=True, capture_output=True)
    unpack = shlex.split(refusal("hf:org/chats", data_root=data).next_command)
    subprocess.run([sys.executable, *unpack[1:]], check=True)
    assert len(open_dataset("hf:org/chats", split="train", data_root=data).image_units()) == 4
