"""Shifted sets: read as published, made where the project makes them, compared on the same questions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import advl
from dataset_mirrors import snli_ve_record, vqa_items, write_lines, write_picture, write_snli_ve

from advl_data.scenes.generator.paths import SPLIT_CODES
from advl_pipeline.datasets.cards import card_names, load_card
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import DatasetError
from advl_pipeline.evaluation.hypothesis_only import fit, hashed_words
from advl_pipeline.evaluation.runner import sample_questions
from advl_pipeline.evaluation.shift import match_questions, original_of, question_namer, shift_drop


def test_vqa_vs_looks_for_its_pictures_in_both_folders(tmp_path: Path) -> None:
    questions, annotations = vqa_items(12, first_image=700)
    for part, stem in (("Training", "Training"), ("OOD-Test/QT+KW", "OOD-Test-QT+KW")):
        folder = tmp_path / "vqa-vs" / part
        folder.mkdir(parents=True)
        (folder / f"{stem}-Ques.json").write_text(json.dumps(questions))
        (folder / f"{stem}-Ans.json").write_text(json.dumps(annotations))
    for image in range(700, 704):
        subtype = "train2014" if image % 2 else "val2014"
        write_picture(tmp_path / "vqa-v2" / subtype / f"COCO_{subtype}_{image:012d}.jpg", shade=image)
    dataset = open_dataset("vqa-vs", split="ood-qt-kw", data_root=tmp_path)
    assert [unit.path.parent.name for unit in dataset.image_units()] == ["val2014", "train2014"] * 2
    (tmp_path / "vqa-v2" / "val2014" / "COCO_val2014_000000000702.jpg").unlink()
    with pytest.raises(DatasetError) as caught:
        open_dataset("vqa-vs", split="ood-qt-kw", data_root=tmp_path).image_units()
    assert "000000000702.jpg is missing" in caught.value.why


def write_esnlive(root: Path, rows: list[dict[str, str]]) -> Path:
    file = root / "snli-ve" / "esnlive_test.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["", "pairID", "Flickr30kID", "hypothesis", "gold_label", "explanation"])
        writer.writeheader()
        writer.writerows(rows)
    return file


def esnlive_rows(count: int) -> list[dict[str, str]]:
    records = [snli_ve_record(number) for number in range(count)]
    return [
        {
            "": str(number),
            "pairID": record["pairID"],
            "Flickr30kID": record["pairID"].partition("#")[0],
            "hypothesis": f'{record["sentence2"]} He says, "wait".',
            "gold_label": record["gold_label"],
            "explanation": "two\nlines",
        }
        for number, record in enumerate(records)
    ]


def test_e_snli_ve_reads_its_csv(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    rows = esnlive_rows(6)
    file = write_esnlive(tmp_path, rows)
    dataset = open_dataset("snli-ve", split="e-test", data_root=tmp_path)
    assert dataset.example_ids == tuple(row["pairID"] for row in rows)
    assert dataset[1].candidates[0].text == 'Two friends wait for bus 1. He says, "wait".'
    assert [dataset[index].label for index in range(3)] == [1, 2, 0]
    original = open_dataset("snli-ve", split="test", data_root=tmp_path)
    assert dataset[3].image.unit_id == original[3].image.unit_id
    rows[2]["gold_label"] = "unsure"
    write_esnlive(tmp_path, rows)
    with pytest.raises(DatasetError) as caught:
        open_dataset("snli-ve", split="e-test", data_root=tmp_path)
    assert caught.value.where == f"{file}:6"  # where the record begins: each spans two lines
    file.write_bytes(file.read_bytes().replace(b"bus 1", b"bus \xff"))
    dataset = open_dataset("snli-ve", split="e-test", data_root=tmp_path, on_error="skip")
    assert len(dataset) == 4
    assert "the line is not UTF-8" in [problem.why for problem in dataset.skipped]


def biased_records(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Pairs whose label three in four hypotheses give away."""
    give_away = {"entailment": "outdoors", "neutral": "friends", "contradiction": "nobody"}
    labels = list(give_away)
    records = []
    for number in range(first, first + count):
        record = snli_ve_record(number)
        label = record["gold_label"]
        word = give_away[label] if number % 4 else give_away[labels[(labels.index(label) + 1) % 3]]
        records.append(record | {"sentence2": f"Someone is {word} at place {number % 7}."})
    return records


def test_hard_pairs_are_those_that_the_hypothesis_gives_away_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_snli_ve(tmp_path, name="train", count=120)
    write_snli_ve(tmp_path, name="test", count=24)
    write_lines(tmp_path / "snli-ve" / "snli_ve_train.jsonl", biased_records(120))
    write_lines(tmp_path / "snli-ve" / "snli_ve_test.jsonl", biased_records(24))
    code, _, err = advl(capsys, "datasets", "check", "snli-ve", "--split", "test-hard", "--data-root", tmp_path)
    assert code == 5
    code, out, _ = advl(capsys, "datasets", "hard-subset", "snli-ve", "--data-root", tmp_path, "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["num_pairs"], result["num_hard"], result["accuracy"]) == (24, 6, 75.0)
    hard = open_dataset("snli-ve", split="test-hard", data_root=tmp_path)
    assert hard.example_ids == tuple(
        record["pairID"] for number, record in enumerate(biased_records(24)) if number % 4 == 0
    )
    first = Path(result["path"]).read_bytes()
    assert advl(capsys, "datasets", "hard-subset", "snli-ve", "--data-root", tmp_path)[0] == 0
    assert Path(result["path"]).read_bytes() == first
    Path(result["path"]).write_text('["a published list"]', encoding="utf-8")
    code, _, err = advl(capsys, "datasets", "hard-subset", "snli-ve", "--data-root", tmp_path)
    assert (code, Path(result["path"]).read_text(encoding="utf-8")) == (2, '["a published list"]'), err
    Path(result["path"]).write_bytes(first)
    for arguments in (["--split", "train"], ["--split", "e-test"]):
        code, _, err = advl(capsys, "datasets", "hard-subset", "snli-ve", "--data-root", tmp_path, *arguments)
        assert code in (2, 5), err


def test_an_unmade_list_says_how_to_make_it(tmp_path: Path) -> None:
    write_snli_ve(tmp_path)
    with pytest.raises(DatasetError) as caught:
        open_dataset("snli-ve", split="test-hard", data_root=tmp_path)
    assert "advl datasets hard-subset snli-ve --split test" in caught.value.next_command


def test_the_model_learns_words_and_pairs() -> None:
    texts = ["a dog runs", "a cat sits", "dog a runs", "cat a sits"] * 5
    labels = np.array([0, 1, 1, 0] * 5)
    weights = fit(texts, labels, num_classes=2)
    called = np.asarray(hashed_words(texts) @ weights).argmax(axis=1)
    assert called.tolist() == labels.tolist()


def test_a_drop_is_over_the_same_questions() -> None:
    match = match_questions("vcr", "val", ("a", "b", "c", "d"), "rule-plural", ("d", "b", "a", "new"))
    assert match.questions == "same"
    drop = shift_drop(np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0]), match)
    assert drop.num_items == 3
    assert drop.original == pytest.approx(200 / 3)
    assert drop.shifted == pytest.approx(100 / 3)
    assert drop.change.points == pytest.approx(-100 / 3)
    assert drop.change.relative_percent == pytest.approx(-50.0)
    assert drop.interval.low <= drop.change.points <= drop.interval.high
    assert drop.significance is not None
    assert 0.0 < drop.significance.p_value <= 1.0
    with pytest.raises(DatasetError, match="in common"):
        shift_drop(np.zeros(1), np.ones(1), match_questions("vcr", "val", ("a",), "rule-plural", ("x",)))


def test_a_part_is_compared_with_the_whole() -> None:
    ids = [str(number) for number in range(200)]
    match = match_questions("vqa-v2", "val", ids, "ce-hard", ids[:50])
    whole_N = np.concatenate([np.tile([1.0, 0.0, 0.0, 0.0, 0.0], 10), np.tile([1.0, 1.0, 0.0], 50)])
    drop = shift_drop(whole_N, whole_N[:50], match)
    assert (drop.questions, drop.num_items, drop.significance) == ("part", 50, None)
    assert drop.original == pytest.approx(55.0)
    assert drop.shifted == pytest.approx(20.0)
    assert drop.change.points == pytest.approx(-35.0)
    # (1 - n / N) (part - rest), of two binomial means.
    spread = 0.75 * 100 * np.sqrt(0.2 * 0.8 / 50 + (2 / 9) / 150)
    assert drop.interval.low == pytest.approx(-35.0 - 1.96 * spread, abs=1.5)
    assert drop.interval.high == pytest.approx(-35.0 + 1.96 * spread, abs=1.5)
    everything = shift_drop(whole_N, whole_N, match_questions("vqa-v2", "val", ids, "ce-hard", ids))
    assert everything.change.points == everything.interval.low == everything.interval.high == 0.0


@pytest.mark.parametrize(
    ("dataset", "original", "shifted", "questions"),
    [
        ("vcr", ("val", ["val-0", "val-1"]), ("rule-singular", ["val-1"]), "same"),
        ("snli-ve", ("test", ["7.jpg#0r1e", "8.jpg#0r1e"]), ("e-test", ["8.jpg#0r1e"]), "same"),
        ("snli-ve", ("test", ["7.jpg#0r1e", "8.jpg#0r1e"]), ("test-hard", ["8.jpg#0r1e"]), "part"),
        ("vqa-v2", ("val", ["70", "71"]), ("ce-hard", ["71"]), "part"),
        ("vqa-v2", ("minival", ["70", "71"]), ("ce-hard", ["71"]), "part"),
        ("vqa-vs", ("test", ["70", "71"]), ("ood-qt", ["71"]), "part"),
        ("vqa-cp-v2", ("val", ["70", "71"]), ("test", ["72"]), "other"),
        ("scenes-vcr", ("test", ["test-0", "test-1"]), ("test-shift", ["test-shift-1"]), "same"),
        ("scenes-vcr", ("test", ["test-0", "test-1"]), ("test-unseen", ["test-unseen-1"]), "other"),
        ("scenes-vqa", ("test", ["3000000000", "3000000001"]), ("test-shift", ["4000000001"]), "same"),
        ("scenes-vqa", ("test", ["3000000000", "3000000001"]), ("test-unseen", ["5000000001"]), "other"),
        ("scenes-snli-ve", ("test", ["31.jpg#0r0e", "32.jpg#0r1n"]), ("test-shift", ["42.jpg#0r1n"]), "same"),
        ("vcr", ("val", ["val-0", "val-1"]), ("scenes-vcr/test", ["test-1"]), "other"),
    ],
)  # fmt: skip
def test_sets_are_matched_as_their_cards_say(
    dataset: str, original: tuple[str, list[str]], shifted: tuple[str, list[str]], questions: str
) -> None:
    match = match_questions(dataset, *original, *shifted)
    assert match.questions == questions
    expected = ([], []) if questions == "other" else ([1], [0])
    assert (match.original_n.tolist(), match.shifted_n.tolist()) == expected


def test_a_card_names_the_original_of_a_shifted_set() -> None:
    assert original_of("vcr", "rule-singular") == "val"
    assert original_of("vqa-v2", "snli-ve/test-hard") == "snli-ve/test"
    assert original_of("scenes-vqa", "test-shift") == "test"
    assert original_of("vcr", "val") is None


def test_cards_say_what_a_shifted_set_shifts_and_compares_with() -> None:
    shifted = 0
    for name in card_names():
        card = load_card(name)
        for split, facts in card.splits.items():
            if "compare_with" in facts:
                assert facts["compare_with"] in card.splits, f"{name} {split}"
                assert facts["shift"]
                shifted += 1
    assert shifted >= 20


@pytest.mark.parametrize(
    ("dataset", "ids"),
    [
        ("scenes-vcr", lambda split, code, number: f"{split}-{number}:vcr-q2a"),
        ("scenes-vqa", lambda split, code, number: f"{code}{number:09}"),
        ("scenes-snli-ve", lambda split, code, number: f"{code}{number:05}.jpg#0r1e"),
    ],
)
def test_samples_of_sets_that_ask_the_same_questions_are_of_the_same_questions(dataset: str, ids: Any) -> None:
    chosen = []
    for split in ("test", "test-rephrased"):
        names = [ids(split, SPLIT_CODES[split], number) for number in range(500)]
        named = question_namer(dataset, split)
        tasks: tuple[Task, ...] = ("vcr-q2a",) if dataset == "scenes-vcr" else ("snli-ve",)
        chosen.append(list(sample_questions(names, tasks, 50, name_of=named)))
    assert len(chosen[0]) == 50
    assert chosen[0] == chosen[1]
